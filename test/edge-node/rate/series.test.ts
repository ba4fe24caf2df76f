// The flight's estimates on recorded series: what a real source sent and heard over the packet-level link (bench:wan,
// commit 41c5f4c, TLS with BBR), event by event. Each line: s | a | l, ms since the first, and bytes sent | bytes
// acknowledged in all | whether the engine saw random loss.
import { readFile } from 'node:fs/promises'
import { Flight, firstWindowBytes, type PathEstimate } from '../../../edge-node/rate/flight.ts'
import { assert, suite } from '../../support/suite.ts'

const test = suite('rate: recorded series')

async function replay(file: string, flight: Flight): Promise<{ atMs: number; estimate: PathEstimate }[]> {
  const text = await readFile(new URL(`./series/${file}`, import.meta.url), 'utf8')
  const seen: { atMs: number; estimate: PathEstimate }[] = []
  for (const line of text.trimEnd().split('\n')) {
    const [what, ms, value] = line.split(' ')
    const atMs = Number(ms)
    if (what === 's') flight.sent(Number(value), atMs)
    else if (what === 'a') flight.acked(Number(value), atMs)
    else flight.setLossy(value === '1')
    if (atMs - (seen.at(-1)?.atMs ?? 0) >= 100) seen.push({ atMs, estimate: flight.estimate() })
  }
  return seen
}

for (const { file, bytesPerSecond, rttMs } of [
  { file: '100-20.txt', bytesPerSecond: 12_500_000, rttMs: 20 },
  { file: '200-150-1.txt', bytesPerSecond: 25_000_000, rttMs: 150 },
  { file: '20-600-0.5.txt', bytesPerSecond: 2_500_000, rttMs: 600 },
]) {
  test(`${file}: the link's rate and round trip are found, and the window holds what is on the way`, async () => {
    const seen = await replay(file, new Flight({ windowInitialBytes: firstWindowBytes(rttMs) }))
    const { estimate } = seen.at(-1)!
    const text = JSON.stringify(estimate)
    // What arrives is records: headers of IP and TCP take 4 to 6 % of the link.
    assert.ok(estimate.rateBytesPerSecond > 0.75 * bytesPerSecond && estimate.rateBytesPerSecond < 1.25 * bytesPerSecond, text)
    assert.ok(estimate.goodputBytesPerSecond < 1.02 * bytesPerSecond, text)
    assert.ok(estimate.rttMinMs >= rttMs && estimate.rttMinMs < 2 * rttMs + 20, text)
    assert.ok(estimate.windowBytes > 0.9 * bytesPerSecond * (rttMs / 1000), text)
    assert.ok(estimate.windowBytes < bytesPerSecond * ((4 * rttMs) / 1000 + 0.1), text)
    for (const { atMs, estimate: then } of seen) {
      assert.ok(then.rttMs >= then.rttMinMs && then.queueMs >= 0 && then.inFlightBytes >= 0, `${atMs} ms: ${JSON.stringify(then)}`)
      assert.ok(then.rateBytesPerSecond < 1.5 * bytesPerSecond, `${atMs} ms: ${JSON.stringify(then)}`)
    }
  })
}

test.run()
