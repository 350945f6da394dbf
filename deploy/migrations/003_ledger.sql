-- How far each epoch is settled for good, with what its media and frames came to: the ledger never reads those again.
create table ledger (
  camera_id text not null,
  epoch text not null,
  -- every seq up to here, and every frame of its media, has its final state
  settled_seq bigint not null default 0,
  validated bigint not null default 0,
  rejected bigint not null default 0,
  lost bigint not null default 0,
  frames_stated bigint not null default 0,
  frames_prepared bigint not null default 0,
  frames_rejected bigint not null default 0,
  updated_at timestamptz not null default now(),
  primary key (camera_id, epoch)
);

-- Dead letters that were sent through the chain again.
create table redrives (
  topic text not null,
  partition int not null,
  record_offset bigint not null,
  -- how often this record has been sent again, with this time
  attempt int not null,
  requested_by text not null default '',
  at timestamptz not null default now(),
  primary key (topic, partition, record_offset, attempt)
);
-- An upload whose sender never came back with its bytes: its seq is told as lost.
alter table uploads add column lost_at timestamptz;

create index dead_letters_by_reason on dead_letters (reason, at desc);
