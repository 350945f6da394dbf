-- Tasks, zones, labels, datasets, training, models, quality.

create table tasks (
  task text primary key,
  -- classes in order; empty means: the labels' distinct values, sorted
  classes text[] not null default '{}',
  preprocessing jsonb not null default '{"width":64,"height":64}',
  created_at timestamptz not null default now()
);

create table zones (
  camera_id text not null,
  zone text not null,
  task text not null references tasks,
  x int not null,
  y int not null,
  width int not null,
  height int not null,
  picture_width int not null,
  picture_height int not null,
  created_at timestamptz not null default now(),
  primary key (camera_id, zone, task)
);

-- Never overwritten: a later label for the same thing supersedes the earlier one.
create table labels (
  label_id uuid primary key,
  camera_id text not null,
  zone text not null,
  task text not null,
  label text not null,
  frame_id uuid,
  media_offset_us bigint,
  frame_at timestamptz,
  source text not null,
  recorded_at timestamptz not null default now(),
  superseded_at timestamptz,
  check (num_nonnulls(frame_id, media_offset_us, frame_at) = 1)
);
create unique index labels_now_by_frame on labels (camera_id, zone, task, frame_id) where superseded_at is null and frame_id is not null;
create unique index labels_now_by_offset on labels (camera_id, zone, task, media_offset_us) where superseded_at is null and media_offset_us is not null;
create unique index labels_now_by_time on labels (camera_id, zone, task, frame_at) where superseded_at is null and frame_at is not null;

-- Written in the same transaction as what it tells of; published and deleted afterwards, at least once.
create table outbox (
  id bigint generated always as identity primary key,
  topic text not null,
  key text not null,
  event_id text not null,
  event_time timestamptz not null,
  event jsonb not null,
  created_at timestamptz not null default now()
);

create table datasets (
  digest text primary key,
  task text not null,
  bucket text not null,
  object_key text not null,
  items int not null,
  summary jsonb not null default '{}',
  -- no frame captured after this moment is in it
  cut_at timestamptz not null,
  created_at timestamptz not null default now()
);

create table training_runs (
  request_id uuid primary key,
  task text not null,
  cause text not null,
  requested_by text not null default '',
  camera_id text,
  from_offset_us bigint,
  until_offset_us bigint,
  from_time timestamptz,
  until_time timestamptz,
  seed int not null default 1,
  force_promote boolean not null default false,
  evidence jsonb not null default '{}',
  state text not null default 'requested',
  message text not null default '',
  epoch int not null default 0,
  epochs int not null default 0,
  loss double precision,
  run_id text not null default '',
  version text not null default '',
  dataset_digest text not null default '',
  metrics jsonb not null default '{}',
  promoted boolean not null default false,
  reason text not null default '',
  requested_at timestamptz not null default now(),
  started_at timestamptz,
  ended_at timestamptz
);
create index training_runs_by_time on training_runs (task, requested_at desc);

create table model_versions (
  task text not null,
  version text not null,
  model_name text not null,
  run_id text not null,
  digest text not null,
  artifact_path text not null,
  preprocessing text not null,
  dataset_digest text not null,
  cut_at timestamptz not null,
  metrics jsonb not null default '{}',
  created_at timestamptz not null default now(),
  primary key (task, version)
);

-- The truth about who serves; MLflow's alias and models.changed follow it.
create table promotions (
  id bigint generated always as identity primary key,
  task text not null,
  alias text not null,
  version text not null,
  decided_by text not null,
  reason text not null,
  decided_at timestamptz not null default now()
);
create index promotions_latest on promotions (task, alias, id desc);

create table quality_windows (
  task text not null,
  window_end timestamptz not null,
  model_version text not null,
  answers int not null,
  accuracy double precision not null,
  balanced_accuracy double precision not null,
  majority_accuracy double precision not null,
  per_zone jsonb not null default '{}',
  primary key (task, window_end)
);

create table decisions (
  id bigint generated always as identity primary key,
  task text not null,
  decision text not null,
  evidence jsonb not null,
  decided_at timestamptz not null default now()
);

create table uploads (
  source text not null,
  idempotency_key text not null,
  media_id uuid not null,
  epoch text not null,
  seq bigint not null,
  sha256 text not null,
  event jsonb not null,
  announced_at timestamptz,
  received_at timestamptz not null default now(),
  primary key (source, idempotency_key)
);
create index uploads_open on uploads (received_at) where announced_at is null;
