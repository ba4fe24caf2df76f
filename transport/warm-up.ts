// A fresh connection is tried out before anybody needs it: BBR learns what the path carries and does not forget it in idle times (Linux starts only other congestion
// controls anew after them, RFC 5681, 4.1), so a migration begins near that rate instead of with 10 packets (200 Mbit/s, 150 ms: some 0.3 s sooner; at 1 % of loss 0.8 s).
// Enters: a connection of an end that has been authenticated. Leaves: some bytes each way, the same over each of its lanes: for a few round trips, up to a bound.
// Always holds: who answers sends no more than it was sent, and reads no more than the bound; what is read is thrown away.
import { encodeFrame } from '../wire/frame.ts'
import { FRAME } from '../wire/types.ts'
import type { Connection, Stream } from './types.ts'

/** Over each lane, each way. */
export const WARM_UP_LANE_BYTES_MAX = 1024 * 1024
const CHUNK = new Uint8Array(16 * 1024)
/** A window that doubles each round trip comes from 10 packets to a MiB in 7 (RFC 6928). */
const ROUND_TRIPS = 8
const LEAST_MS = 200

/** Resolves with the bytes sent when the other end has answered; rejects as its streams do (an end that takes none resets them). */
export async function warmUp(connection: Connection, bytesMax: number): Promise<number> {
  const lanes = connection.lanes ?? 1
  const laneBytes = Math.min(WARM_UP_LANE_BYTES_MAX, Math.floor(bytesMax / lanes))
  const endMs = performance.now() + LEAST_MS + ROUND_TRIPS * (connection.stats().rttMs ?? 0)
  const sent = await Promise.all(Array.from({ length: lanes }, async () => await warmLane(await connection.openStream(), laneBytes, endMs)))
  return sent.reduce((sum, bytes) => sum + bytes, 0)
}

async function warmLane(stream: Stream, bytesMax: number, endMs: number): Promise<number> {
  try {
    await stream.write(encodeFrame(FRAME.WARM_UP, new Uint8Array(0)))
    const sent = await send(stream, bytesMax, endMs)
    await discard(stream, bytesMax)
    return sent
  } catch (error) {
    stream.reset('no warm-up')
    throw error
  }
}

/** The other end of it: `stream` stands behind the first frame. */
export async function answerWarmUp(stream: Stream): Promise<void> {
  const bytes = await discard(stream, WARM_UP_LANE_BYTES_MAX)
  await send(stream, bytes, Number.POSITIVE_INFINITY)
}

async function send(stream: Stream, bytesMax: number, endMs: number): Promise<number> {
  let sent = 0
  while (sent < bytesMax && performance.now() < endMs) {
    const chunk = CHUNK.subarray(0, bytesMax - sent)
    await stream.write(chunk)
    sent += chunk.length
  }
  await stream.end()
  return sent
}

/** To the end; more than `bytesMax` is an error. */
async function discard(stream: Stream, bytesMax: number): Promise<number> {
  let bytes = 0
  for (let chunk = await stream.read(); chunk !== null; chunk = await stream.read()) {
    bytes += chunk.length
    if (bytes > bytesMax) throw new Error(`more than ${bytesMax} bytes of warm-up`)
  }
  return bytes
}
