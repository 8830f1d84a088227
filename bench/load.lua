-- Sends one method to the keys of a file, in the file's order, over and over. Arguments: method, file, value bytes.
local requests, at = {}, 0

function init(args)
  local body = nil
  if args[1] == "PUT" then body = string.rep("v", tonumber(args[3])) end
  for key in io.lines(args[2]) do
    requests[#requests + 1] = wrk.format(args[1], "/kv/" .. key, nil, body)
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format("RESULT %d %d %d %d\n", summary.requests, summary.duration, latency:percentile(99),
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
