// Warms up a new connection before it is used: BBR learns the rate of the path and keeps it in idle times (Linux
// restarts only other congestion controls after them, RFC 5681, 4.1), so a migration begins near that rate instead of
// with 10 packets (200 Mbit/s, 150 ms: about 0.3 s sooner; at 1 % of loss 0.8 s). Enters: an authenticated connection.
// Leaves: some bytes in each direction, the same over each lane: for a few round trips, up to a bound. Always holds:
// the answering end sends no more than it received, and reads no more than the bound; the bytes are discarded.
import { encodeFrame } from '../wire/frame.ts'
import { FRAME } from '../wire/types.ts'
import type { Connection, Stream } from './types.ts'

/** Over each lane, in each direction. */
export const WARM_UP_LANE_BYTES_MAX = 1024 * 1024
const CHUNK = new Uint8Array(16 * 1024)
/** A window that doubles each round trip grows from 10 packets to 1 MiB in 7 round trips (RFC 6928). */
const ROUND_TRIPS = 8
const LEAST_MS = 200

/**
 * Resolves with the number of sent bytes when the other end has answered; rejects with the error of its streams (an end
 * without warm-up resets them).
 */
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
    stream.reset('the stream ended before its warm-up')
    throw error
  }
}

/** The answering end: `stream` is positioned after the first frame. */
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

/** Reads to the end; more than `bytesMax` is an error. */
async function discard(stream: Stream, bytesMax: number): Promise<number> {
  let bytes = 0
  for (let chunk = await stream.read(); chunk !== null; chunk = await stream.read()) {
    bytes += chunk.length
    if (bytes > bytesMax) throw new Error(`more than ${bytesMax} bytes of warm-up`)
  }
  return bytes
}
