// The source's meter: a QEMU that has given its migration up ends it, also where its socket stays open; the status of
// an earlier migration does not.
import { createMeter, type MeterOptions } from '../../../edge-node/migration/progress.ts'
import { Flight } from '../../../edge-node/rate/flight.ts'
import { createGate } from '../../../edge-node/rate/gate.ts'
import { eventually } from '../../../ops/deadline.ts'
import type { GodwitError } from '../../../wire/errors.ts'
import { silentLog } from '../../../wire/log.ts'
import { assert, suite } from '../../support/suite.ts'

const test = suite('edge-node/migration/progress')

function metered(status: string) {
  const failed: GodwitError[] = []
  let asked = 0
  const qmp = {
    on: () => () => {},
    async execute(command: string) {
      if (command !== 'query-migrate') return {}
      asked += 1
      return { status, 'error-desc': 'Unable to write to socket: Broken pipe' }
    },
  }
  const gate = createGate(new Flight({ windowInitialBytes: 1 << 20 }), () => performance.now())
  const over = new AbortController()
  const options = {
    ...{ plan: { migrationId: 'ab'.repeat(16), vm: 'web-1', source: 'a', target: 'b', method: 'live', downtimeMs: 300, streams: 1 }, qmp },
    ...{
      talk: { gate, lost: { reconnects: 0, awayMs: 0 }, carriers: undefined, changeOver() {} },
      outgoing: { pipeline: undefined, wireBytes: 0 },
    },
    ...{ transport: 'memory', timeline: { startMs: performance.now() } as { startMs: number; qemuMs?: number }, onProgress() {} },
    ...{ signal: over.signal, fail: (error: GodwitError) => void failed.push(error), log: silentLog },
  }
  const meter = createMeter(options as unknown as MeterOptions)
  return { failed, asked: () => asked, timeline: options.timeline, [Symbol.dispose]: () => meter.stop() }
}

for (const status of ['failed', 'cancelled'])
  test(`a QEMU whose migration is '${status}' ends it, with its own words; not before it was told to migrate`, async () => {
    using meter = metered(status)
    await eventually(() => meter.asked() > 2 || undefined, { ms: 10_000, what: 'samples' })
    assert.is(meter.failed.length, 0, 'that status is of an earlier migration')
    meter.timeline.qemuMs = performance.now()
    await eventually(() => meter.failed.length > 0 || undefined, { ms: 10_000, what: 'the failure' })
    assert.is(meter.failed[0]?.code, 'MIGRATION_FAILED')
    assert.match(meter.failed[0]?.message ?? '', new RegExp(`${status}.*Broken pipe`))
  })

test('one that is active goes on', async () => {
  using meter = metered('active')
  meter.timeline.qemuMs = performance.now()
  await eventually(() => meter.asked() > 3 || undefined, { ms: 10_000, what: 'samples' })
  assert.is(meter.failed.length, 0)
})

test.run()
