-- What each upload asks: its own row, and the last one of its source.
create unique index uploads_by_media on uploads (media_id);
create index uploads_by_seq on uploads (source, seq desc);
