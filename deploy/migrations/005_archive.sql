-- What lies in the archive: per partition files that follow each other without a gap. One of no records stands for
-- offsets at which only transaction markers lie, and has no object.
create table archive_files (
  topic text not null,
  partition int not null,
  from_offset bigint not null,
  -- exclusive
  until_offset bigint not null,
  bucket text not null,
  object_key text not null,
  sha256 text not null,
  bytes bigint not null,
  records int not null,
  -- of the records, by the broker's clock
  from_time timestamptz,
  until_time timestamptz,
  archived_at timestamptz not null default now(),
  primary key (topic, partition, from_offset)
);

create table replays (
  replay_id text primary key,
  topic text not null,
  into_topic text not null,
  request jsonb not null,
  -- [{topic, partition, from, until}], frozen when the replay began
  ranges jsonb not null,
  -- running, stopped, done, removed
  state text not null default 'running',
  records bigint not null default 0,
  -- of the manifest, once it is done
  digest text not null default '',
  requested_by text not null default '',
  created_at timestamptz not null default now(),
  ended_at timestamptz
);
