-- Whether the champion before took its place again: then the one that it was before is who comes back the next time.
alter table promotions add column is_rollback boolean not null default false;
update promotions set is_rollback = true where alias = 'champion' and (reason like 'rolled back from version %' or reason like 'version % did not pass its probation: %');
-- Who serves now: the last word about each alias. An empty version is nobody.
create view roles_now as select distinct on (task, alias) * from promotions order by task, alias, id desc;
-- What MLflow was told last of each alias, which follows the log above.
create table mlflow_aliases (
  task text not null,
  alias text not null,
  model_name text not null,
  version text not null,
  told_at timestamptz not null default now(),
  primary key (task, alias)
);
-- How often a trainer has begun it: one that ends its trainer each time is given up. Nobody ever wrote or read the message.
alter table training_runs add column attempts int not null default 0;
alter table training_runs drop column message;
-- Sent again so often that it is left alone, or older than its topic keeps: it stands in nobody's way any more.
alter table dead_letters add column is_given_up boolean not null default false;
