-- A frame may be prepared against two reference pictures in one way: the one that is wanted now and the one that the champion knows.
alter table features add column reference text not null default '';
update features set reference = parameters->>'reference' where parameters ? 'reference';
do $$
begin
  execute (select format('alter table features drop constraint %I', conname) from pg_constraint where conrelid = 'features'::regclass and contype = 'p');
end $$;
alter table features add primary key (frame_id, preprocessing, reference, frame_at);
