-- What wrk sends: the requests that lie in a folder, one after the other. Prints what it saw as one line of JSON.
local requests, at = {}, 0

function init(args)
  for _, name in ipairs(args) do
    local file = assert(io.open(name, "rb"))
    requests[#requests + 1] = file:read("*a")
    file:close()
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency)
  local errors = summary.errors
  local failed = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  print(string.format('{"answered":%d,"failed":%d,"seconds":%f,"p99":%f}', summary.requests, failed, summary.duration / 1e6, latency:percentile(99) / 1e3))
end
