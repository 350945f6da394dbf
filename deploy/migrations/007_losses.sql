-- Erased outweighs what a medium was before: the ledger counts it apart from what was lost.
alter table ledger add column erased bigint not null default 0;
-- Two reports that begin at the same seq are two rows, in whatever order they are read.
alter table losses drop constraint losses_pkey;
alter table losses add primary key (camera_id, epoch, seq_from, seq_to, reason);
