// Frames that are kept until they are taken: over meetings that end anywhere, and against a target that says of itself
// what cannot be.
import { createKeptStreams, KEPT_BYTES_MAX } from '../../../edge-node/channel/kept-streams.ts'
import type { SealedWriter } from '../../../edge-node/channel/sealed-stream.ts'
import { GodwitError } from '../../../wire/errors.ts'
import { pages } from '../../../wire/roles.ts'
import { FRAME } from '../../../wire/types.ts'
import { assert, codeOf, suite } from '../../support/suite.ts'
import { randomFrom } from '../stream/generate.ts'

const test = suite('edge-node/channel/kept-streams')

const nothing = new Uint8Array(0)
const roles = (streams: number) => Array.from({ length: streams }, (_, n) => pages(n))
const number = (n: number) => Uint8Array.of(n >> 8, n & 255)
/** Writers that note what goes through them, and refuse from the frame on that `until` says. */
function writers(log: string[][], until = Number.POSITIVE_INFINITY): SealedWriter[] {
  let sent = 0
  return log.map((line, stream) => {
    const send = async (type: number, payload: Uint8Array) => {
      await null
      if (sent++ >= until) throw new GodwitError('CONNECTION_LOST', 'cut')
      line.push(type === FRAME.BARRIER ? 'barrier' : `${stream}:${payload.join('.')}`)
    }
    return { send, flush: async () => {}, finish: async () => {}, records: 0, digest: () => nothing, wireBytes: 0 }
  })
}
const settle = () => new Promise(resolve => setTimeout(resolve, 2))
const fresh = (streams: number) => Array.from({ length: streams }, (): string[] => [])

test('over meetings that are cut anywhere each frame goes out once behind what is taken, in the order of its stream', async () => {
  for (let seed = 0; seed < 200; seed++) {
    const random = randomFrom(seed)
    const streams = 1 + random(4)
    const said = fresh(streams)
    let ended = 0
    const kept = createKeptStreams({ roles: roles(streams), onEnded: () => ended++, onLost: () => kept.detach() })
    const arrived = fresh(streams)
    const meet = (until?: number) => {
      const log = fresh(streams)
      kept.attach(
        writers(log, until),
        arrived.map(line => line.length),
      )
      return log
    }
    let log = meet(random(12))
    for (let interval = 0; interval < 4; interval++) {
      for (let stream = 0; stream < streams; stream++) {
        for (let n = random(5); n > 0; n--) {
          const payload = number(said[stream]!.length)
          said[stream]!.push(`${stream}:${payload.join('.')}`)
          void kept.send(pages(stream), FRAME.BATCH, payload)
        }
        said[stream]!.push('barrier')
        void kept.send(pages(stream), FRAME.BARRIER, nothing, { flush: true })
      }
      await settle()
      // What arrives of a cut meeting is a part from the front of each stream.
      log.forEach((line, i) => void arrived[i]!.push(...line.slice(0, random(line.length + 1))))
      log = meet(random(12))
    }
    kept.end()
    await settle()
    log.forEach((line, i) => void arrived[i]!.push(...line.slice(0, random(line.length + 1))))
    log = meet()
    await settle()
    log.forEach((line, i) => void arrived[i]!.push(...line))
    assert.equal(arrived, said, `seed ${seed}`)
    assert.ok(ended >= 1)
    kept.taken(arrived.map(line => line.length))
    assert.is(kept.keptBytes, 0)
  }
})

test('no stream carries anything of the next interval before all have carried the barrier, in a later meeting as well', async () => {
  const kept = createKeptStreams({ roles: roles(2), onEnded: () => {}, onLost: () => {} })
  for (let n = 0; n < 3; n++) void kept.send(pages(0), FRAME.BATCH, number(n))
  void kept.send(pages(0), FRAME.BARRIER, nothing)
  void kept.send(pages(0), FRAME.BATCH, number(99))
  for (let n = 0; n < 50; n++) void kept.send(pages(1), FRAME.BATCH, number(n))
  for (const _ of [1, 2]) {
    const log = fresh(2)
    kept.attach(writers(log), [0, 0])
    await settle()
    assert.equal(log[0], ['0:0.0', '0:0.1', '0:0.2', 'barrier'])
    assert.is(log[1]!.length, 50)
  }
  void kept.send(pages(1), FRAME.BARRIER, nothing)
  const log = fresh(2)
  kept.attach(writers(log), [4, 20])
  await settle()
  assert.equal(log[0], ['0:0.99'])
})

test('a target that takes what was never sent, or gives back what it has taken, is in breach', async () => {
  const kept = createKeptStreams({ roles: roles(1), onEnded: () => {}, onLost: () => {} })
  kept.attach(writers(fresh(1)), [0])
  await kept.send(pages(0), FRAME.BATCH, number(1))
  assert.is(await codeOf(() => kept.taken([2])), 'FRAME_MALFORMED')
  assert.is(await codeOf(() => kept.taken([0, 0])), 'FRAME_MALFORMED')
  kept.taken([1])
  kept.taken([0])
  assert.is(await codeOf(() => kept.attach(writers(fresh(1)), [0])), 'FRAME_MALFORMED')
  assert.is(await codeOf(() => kept.attach(writers(fresh(1)), [2])), 'FRAME_MALFORMED')
})

test('a target that acknowledges bytes and takes no frame does not fill our memory', async () => {
  const kept = createKeptStreams({ roles: roles(1), onEnded: () => {}, onLost: () => {} })
  kept.attach(writers(fresh(1)), [0])
  const payload = new Uint8Array(1024 * 1024)
  const fill = async () => {
    for (let n = 0; n <= KEPT_BYTES_MAX / payload.length; n++) await kept.send(pages(0), FRAME.BATCH, payload)
  }
  assert.is(await codeOf(fill), 'LIMIT_EXCEEDED')
})

test.run()
