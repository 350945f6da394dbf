-- The catalog: what became of every frame. Each topic fills its own columns, so the order in which topics are read does
-- not matter: status is the highest rank seen, and no foreign key waits for another stage.

create table media (
  media_id uuid primary key,
  site_id text not null,
  camera_id text not null,
  agent_id text not null default '',
  epoch text not null,
  seq bigint not null,
  source text not null default 'camera',
  kind text not null default 'image',
  lane text not null default 'live',
  captured_at timestamptz not null,
  media_offset_us bigint,
  -- 1 captured, 2 validated, 3 rejected, 4 extracted
  status_rank smallint not null default 1,
  reason text not null default '',
  bucket text not null default '',
  object_key text not null default '',
  object_sha256 text not null default '',
  object_bytes bigint not null default 0,
  format text not null default '',
  width int not null default 0,
  height int not null default 0,
  frame_count int,
  -- what was measured and with which version of the stage
  parameters jsonb not null default '{}',
  trace_id text not null default '',
  recorded_at timestamptz not null default now()
);
create unique index media_by_seq on media (camera_id, epoch, seq);
create index media_by_time on media (camera_id, captured_at desc);

create table frames (
  frame_id uuid primary key,
  media_id uuid not null,
  camera_id text not null,
  epoch text not null,
  seq bigint not null,
  frame_at timestamptz not null,
  media_offset_us bigint,
  frame_index int not null default 0,
  -- 1 extracted, 2 rejected, 3 prepared
  status_rank smallint not null default 1,
  reason text not null default '',
  bucket text not null default '',
  object_key text not null default '',
  object_sha256 text not null default '',
  width int not null default 0,
  height int not null default 0,
  parameters jsonb not null default '{}',
  recorded_at timestamptz not null default now()
);
create index frames_by_media on frames (media_id);
create index frames_by_time on frames (camera_id, frame_at desc);

create table features (
  frame_id uuid not null,
  preprocessing text not null,
  camera_id text not null,
  frame_at timestamptz not null,
  media_offset_us bigint,
  -- the final path of the frame: its prepared pixels
  bucket text not null,
  object_key text not null,
  object_sha256 text not null,
  picture_sha256 text not null default '',
  zones jsonb not null default '[]',
  parameters jsonb not null default '{}',
  topic text not null,
  partition int not null,
  record_offset bigint not null,
  prepared_at timestamptz not null,
  primary key (frame_id, preprocessing)
);
create index features_by_camera_time on features (camera_id, frame_at desc);
create index features_by_camera_offset on features (camera_id, media_offset_us);

create table predictions (
  frame_id uuid not null,
  zone text not null,
  task text not null,
  model_version text not null,
  camera_id text not null,
  frame_at timestamptz not null,
  media_offset_us bigint,
  answer text not null,
  confidence double precision not null,
  scores jsonb not null default '[]',
  model_name text not null default '',
  model_digest text not null default '',
  preprocessing text not null default '',
  captured_at timestamptz not null,
  answered_at timestamptz not null,
  primary key (frame_id, zone, task, model_version)
);
create index predictions_by_camera_time on predictions (camera_id, task, frame_at desc);
create index predictions_by_answer on predictions (answered_at desc);

-- Every record a media or frame has been in: what `follow` prints.
create table hops (
  topic text not null,
  partition int not null,
  record_offset bigint not null,
  subject_id uuid not null,
  at timestamptz not null,
  primary key (topic, partition, record_offset)
);
create index hops_by_subject on hops (subject_id);

create table dead_letters (
  topic text not null,
  partition int not null,
  record_offset bigint not null,
  stage text not null,
  reason text not null,
  message text not null default '',
  origin_topic text not null,
  origin_partition int not null,
  origin_offset bigint not null,
  camera_id text not null default '',
  subject_id uuid,
  at timestamptz not null,
  primary key (topic, partition, record_offset)
);
create index dead_letters_by_time on dead_letters (at desc);

create table losses (
  camera_id text not null,
  epoch text not null,
  seq_from bigint not null,
  seq_to bigint not null,
  agent_id text not null default '',
  reason text not null,
  lost_at timestamptz not null,
  primary key (camera_id, epoch, seq_from)
);

-- The highest durable seq of each epoch, as its agent or the ingest API says: the ledger's left-hand side.
create table captures (
  camera_id text not null,
  epoch text not null,
  agent_id text not null,
  highest_seq bigint not null,
  forgotten_seq bigint not null default 0,
  state text not null default '',
  message text not null default '',
  source_kind text not null default '',
  frames_per_second double precision not null default 0,
  last_frame_at timestamptz,
  reported_at timestamptz not null,
  primary key (camera_id, epoch)
);

-- How far the catalog has read; moved in the same transaction as the rows, by compare-and-set.
create table catalog_offsets (
  topic text not null,
  partition int not null,
  next_offset bigint not null,
  primary key (topic, partition)
);
