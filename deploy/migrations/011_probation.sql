-- Until when a new champion is judged beside the one before it, which takes its place again if it proves better; null: not at all.
alter table promotions add column probation_until timestamptz;
-- How long its model took for it, with those asked together with it.
alter table predictions add column predict_ms double precision not null default 0;
