-- As what its model answered: champion, challenger or shadow (whose answers count for nobody); empty for answers from before this was kept.
alter table predictions add column alias text not null default '';
