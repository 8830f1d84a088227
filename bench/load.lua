-- Sends one method to the keys of a file, in the file's order, over and over; or BATCH, whose lines are bodies.
-- Each thread has a server, and begins somewhere else in the file, so that no two write the same key at once.
-- Arguments: method, file, value bytes, query, the port of each thread's server.
local requests, at, threads = {}, 0, {}
failed = 0

function setup(thread)
  thread:set("number", #threads)
  threads[#threads + 1] = thread
end

function init(args)
  local method, body, headers = args[1], nil, {["Content-Type"] = "application/json"}
  if method == "PUT" then body = string.rep("v", tonumber(args[3])) end
  for line in io.lines(args[2]) do
    if method == "BATCH" then
      requests[#requests + 1] = wrk.format("POST", "/batch", headers, line)
    else
      requests[#requests + 1] = wrk.format(method, "/kv/" .. line .. args[4], nil, body)
    end
  end
  at = math.floor(#requests * number / (#args - 4))
  wrk.thread.addr = wrk.lookup("127.0.0.1", args[5 + number])[1]
  if method == "BATCH" then
    -- A batch is 200 whatever became of its operations; those that failed say whether to try again.
    response = function(_, _, text)
      if text:find('"retryable"', 1, true) then failed = failed + 1 end
    end
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency)
  local errors = summary.errors
  local count = errors.connect + errors.read + errors.write + errors.status + errors.timeout
  for _, thread in ipairs(threads) do count = count + thread:get("failed") end
  io.write(string.format("RESULT %d %d %d %d\n", summary.requests, summary.duration, latency:percentile(99), count))
end
