-- One partition a day (UTC), so that a day is dropped, moved or vacuumed by itself and indexes stay small. What lies
-- outside of the days that the catalog makes (a clock decades off) goes to the default partition.

create function ensure_catalog_days(days date[]) returns void language plpgsql as $$
declare
  day date;
  parent text;
  part text;
begin
  -- two catalogs must not make the same day at once
  perform pg_advisory_xact_lock(hashtext('frameloop.catalog.days'));
  foreach day in array days loop
    foreach parent in array array['media', 'frames', 'features', 'predictions', 'hops'] loop
      part := parent || '_' || to_char(day, 'YYYYMMDD');
      if to_regclass(part) is null then
        begin
          execute format('create table %I partition of %I for values from (%L) to (%L)', part, parent, day || ' 00:00:00+00', day + 1 || ' 00:00:00+00');
        exception when check_violation then
          -- rows of that day lie in the default partition already, and stay there
          null;
        end;
      end if;
    end loop;
  end loop;
end $$;

alter table media rename to media_before;
alter table frames rename to frames_before;
alter table features rename to features_before;
alter table predictions rename to predictions_before;
alter table hops rename to hops_before;
drop index media_by_seq, media_by_time, frames_by_media, frames_by_time, features_by_camera_time, features_by_camera_offset, predictions_by_camera_time, predictions_by_answer, hops_by_subject;

create table media (like media_before including defaults) partition by range (captured_at);
create table frames (like frames_before including defaults) partition by range (frame_at);
create table features (like features_before including defaults) partition by range (frame_at);
create table predictions (like predictions_before including defaults) partition by range (frame_at);
create table hops (like hops_before including defaults) partition by range (at);

create table media_default partition of media default;
create table frames_default partition of frames default;
create table features_default partition of features default;
create table predictions_default partition of predictions default;
create table hops_default partition of hops default;

select ensure_catalog_days(coalesce(array_agg(day), '{}')) from (
  select distinct (captured_at at time zone 'utc')::date as day from media_before
  union select distinct (frame_at at time zone 'utc')::date from frames_before
  union select distinct (at at time zone 'utc')::date from hops_before
) d where day > now() - interval '400 days' and day < now() + interval '2 days';

insert into media select * from media_before;
insert into frames select * from frames_before;
insert into features select * from features_before;
insert into predictions select * from predictions_before;
insert into hops select * from hops_before;
drop table media_before, frames_before, features_before, predictions_before, hops_before;

alter table media add primary key (media_id, captured_at);
alter table frames add primary key (frame_id, frame_at);
alter table features add primary key (frame_id, preprocessing, frame_at);
alter table predictions add primary key (frame_id, zone, task, model_version, frame_at);
alter table hops add primary key (topic, partition, record_offset, at);

create index media_by_seq on media (camera_id, epoch, seq);
create index media_by_time on media (camera_id, captured_at) include (status_rank);
create index frames_by_media on frames (media_id);
create index frames_by_time on frames (camera_id, frame_at) include (status_rank);
create index features_by_camera_time on features (camera_id, frame_at);
create index features_by_camera_offset on features (camera_id, media_offset_us);
create index features_by_version on features (preprocessing, (parameters->>'stageVersion'), frame_at);
create index predictions_by_camera_time on predictions (camera_id, task, frame_at);
create index predictions_by_answer on predictions (answered_at);
create index hops_by_subject on hops (subject_id);
drop index dead_letters_by_reason;
create index dead_letters_by_reason on dead_letters (reason, at);

-- Questions that people ask. Each has its index; measured at ten million rows by `npm run bench -- catalog`.

-- Every record that a media or frame, and the frames of a media, have been in, oldest first.
create function frame_way(id uuid) returns table (topic text, partition int, record_offset bigint, at timestamptz, subject_id uuid) language sql stable as $$
  with subjects as (
    select id as subject union select f.frame_id from frames f where f.media_id = id union select f.media_id from frames f where f.frame_id = id
  )
  select h.topic, h.partition, h.record_offset, h.at, h.subject_id from hops h where h.subject_id = any (array(select subject from subjects)) order by h.at, h.topic
$$;

-- A camera's day (UTC) by the hour: what was captured, and what became of it.
create function camera_day(camera text, day date) returns table (hour timestamptz, captured bigint, validated bigint, rejected bigint) language sql stable as $$
  select date_bin('1 hour', m.captured_at, day::timestamp at time zone 'utc'), count(*), count(*) filter (where m.status_rank in (2, 4)), count(*) filter (where m.status_rank = 3)
  from media m where m.camera_id = camera and m.captured_at >= day::timestamp at time zone 'utc' and m.captured_at < (day + 1)::timestamp at time zone 'utc'
  group by 1 order by 1
$$;

-- Dead letters of a range by reason and stage, most first.
create function rejects_by_reason(since timestamptz, until timestamptz) returns table (reason text, stage text, rejects bigint, last timestamptz) language sql stable as $$
  select d.reason, d.stage, count(*), max(d.at) from dead_letters d where d.at >= since and d.at < until group by 1, 2 order by 3 desc, 1, 2
$$;

-- Which preprocessing and which version of the stage prepared features, and from when to when: by skipping from one to
-- the next in the index, so the number of frames does not matter.
create function feature_versions() returns table (preprocessing text, stage_version text, first timestamptz, last timestamptz) language sql stable as $$
  with recursive found as (
    (select f.preprocessing, f.parameters->>'stageVersion' as version from features f order by 1, 2 limit 1)
    union all
    select n.preprocessing, n.version from found o cross join lateral (
      select f.preprocessing, f.parameters->>'stageVersion' as version from features f
      where (f.preprocessing, f.parameters->>'stageVersion') > (o.preprocessing, o.version) order by 1, 2 limit 1
    ) n
  )
  select o.preprocessing, o.version,
    (select f.frame_at from features f where f.preprocessing = o.preprocessing and f.parameters->>'stageVersion' = o.version order by f.frame_at limit 1),
    (select f.frame_at from features f where f.preprocessing = o.preprocessing and f.parameters->>'stageVersion' = o.version order by f.frame_at desc limit 1)
  from found o
$$;
