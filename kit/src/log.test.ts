import { expect, test } from 'vitest'
import { redact } from './log.ts'

test.each([
  ['rtsp://user:secret@10.0.0.7/stream', 'rtsp://***@10.0.0.7/stream'],
  ['rtsp://user:abc@123@host:554/x', 'rtsp://***@host:554/x'],
  ['Could not open rtsp://a:b@host/x, then http://c:d@other', 'Could not open rtsp://***@host/x, then http://***@other'],
  ['https://host/a@b', 'https://host/a@b'],
  ['http://10.0.0.7/api.cgi?cmd=Snap&user=admin&password=se%20cret&rs=1', 'http://10.0.0.7/api.cgi?cmd=Snap&user=***&password=***&rs=1'],
  ['rtsp://10.0.0.7:554/user=admin_password=tlJwpbo6_channel=1_stream=0.sdp', 'rtsp://10.0.0.7:554/user=***_password=***_channel=1_stream=0.sdp'],
  ['rtsp://10.0.0.7/user=admin_password=my_secret_channel=1', 'rtsp://10.0.0.7/user=***_password=***_channel=1'],
  ['http://host/v1/feeds?ticket=once', 'http://host/v1/feeds?ticket=once'],
])('no password of an address stands in a log: %s', (text, shown) => {
  expect(redact(text)).toBe(shown)
})
