-- Of a challenger: which share of the frames it answers in the champion's place. An alias whose version is empty is nobody's.
alter table promotions add column share double precision not null default 1;
