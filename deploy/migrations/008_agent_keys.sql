-- Public keys of agents: what such an agent announces must be signed with its own.
create table agent_keys (
  agent_id text primary key,
  public_key text not null,
  added_at timestamptz not null default now()
);
