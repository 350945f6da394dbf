-- What a version was trained on, so that it goes on being prepared while it serves, whatever the task wants next.
alter table model_versions
  add column preprocessing_parameters jsonb not null default '{"width":64,"height":64}',
  add column reference_pictures jsonb not null default '{}';

-- The picture of a camera with nothing going on: immutable, by version.
create table reference_pictures (
  camera_id text not null,
  version int not null,
  bucket text not null,
  object_key text not null,
  sha256 text not null,
  bytes bigint not null,
  width int not null,
  height int not null,
  -- the frames it is the median of
  frames uuid[] not null,
  made_at timestamptz not null default now(),
  primary key (camera_id, version)
);
