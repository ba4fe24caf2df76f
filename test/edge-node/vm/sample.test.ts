import { ftruncateSync, mkdtempSync, openSync, rmSync, statSync, writeSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { loadZstd } from '../../../edge-node/pages/compress.ts'
import { createCostPredictor } from '../../../edge-node/predict.ts'
import type { QmpClient } from '../../../edge-node/qmp/client.ts'
import type { RunningVm } from '../../../edge-node/vm/machine.ts'
import { measureDirtyRate, measureMemory, sampleMemory } from '../../../edge-node/vm/sample.ts'
import type { Report } from '../../../wire/control.ts'
import { assert, suite } from '../../support/suite.ts'

const test = suite('vm: sample')
const PAGE = 4096
const zstd = await loadZstd()

/**
 * A quarter of random pages, a quarter of text, a sixteenth of one page again and again; the rest was never written.
 */
function createMemory(pages: number) {
  const folder = mkdtempSync(join(tmpdir(), 'godwit-sample-'))
  const path = join(folder, 'memory')
  const open = () => openSync(path, 'a+')
  const fd = openSync(path, 'w+')
  ftruncateSync(fd, pages * PAGE)
  for (let page = 0; page < pages; page++) {
    const part = page % 16
    const bytes = Buffer.alloc(PAGE)
    if (part < 4) for (let at = 0; at < PAGE; at++) bytes[at] = Math.random() * 256
    else if (part < 8) bytes.fill(`page ${page} of a guest that is like many others; `)
    else if (part === 8) bytes.fill(7)
    else continue
    writeSync(fd, bytes, 0, PAGE, page * PAGE)
  }
  return { open, path, [Symbol.dispose]: () => rmSync(folder, { recursive: true }) }
}

test('shares of zero, repeated and compressible pages are seen, and no hole is filled', () => {
  using memory = createMemory(4096)
  const before = statSync(memory.path).blocks
  const { zeroShare, duplicateShare, compressedShare } = sampleMemory(zstd, memory.open(), 4096 * PAGE)
  assert.ok(Math.abs(zeroShare - 7 / 16) < 0.02, `${zeroShare}`)
  assert.ok(Math.abs(duplicateShare - 1 / 16) < 0.02, `${duplicateShare}`)
  assert.ok(compressedShare > 0.45 && compressedShare < 0.6, `${compressedShare}`)
  assert.is(statSync(memory.path).blocks, before)
})

/** A QEMU that has measured at the third asking. */
const qmp = (rate: number) => {
  let asked = 0
  return {
    execute: async (name: string) =>
      name === 'query-dirty-rate' && ++asked >= 3 ? { status: 'measured', 'dirty-rate': rate } : { status: 'measuring' },
  } as unknown as QmpClient
}

test("QEMU's dirty rate is waited for", async () => {
  assert.is(await measureDirtyRate(qmp(12)), 12 * 1024 * 1024)
})

test('a prediction names what it assumes, and knows the way once a migration has been there', async () => {
  using memory = createMemory(1024)
  const machine = () => ({ qmp: qmp(1), memoryBytes: 1024 * PAGE, memoryFd: async () => memory.open() }) as unknown as RunningVm
  let now = 77
  const predictor = createCostPredictor({ running: machine, measure: measureMemory, linkStats: () => ({ rttMs: 33 }), now: () => now })
  const first = await predictor.predict({ vm: 'web', target: 'b', downtimeMs: 300 })
  assert.is(first.pathFrom, 'an assumption')
  assert.is(first.facts.path.rttMs, 33)
  predictor.learn({ target: 'b', rttMs: 50, rateBytesPerSecond: 1_000_000 } as unknown as Report)
  predictor.learn({ target: 'c', rttMs: 50 } as unknown as Report)
  now += 60_000
  const second = await predictor.predict({ vm: 'web', target: 'b', downtimeMs: 300 })
  assert.equal(
    [second.pathFrom, second.pathAgeMs, second.facts.path],
    ['the last migration there', 60_000, { bytesPerSecond: 1_000_000, rttMs: 50 }],
  )
  assert.is((await predictor.predict({ vm: 'web', target: 'c', downtimeMs: 300 })).pathFrom, 'an assumption')
})

test('figures of an earlier migration count for an hour, and only while the link is as it was then', async () => {
  using memory = createMemory(1024)
  const machine = () => ({ qmp: qmp(1), memoryBytes: 1024 * PAGE, memoryFd: async () => memory.open() }) as unknown as RunningVm
  const ask = { vm: 'web', target: 'b', downtimeMs: 300 }
  let now = 1_000
  let link = { rttMs: 20, congestion: 'bbr' }
  const predictor = createCostPredictor({ running: machine, measure: measureMemory, linkStats: () => link, now: () => now })
  // A link that was slow then: 100 kB/s.
  predictor.learn({ target: 'b', rttMs: 50, rateBytesPerSecond: 100_000 } as unknown as Report)
  const path = async () => (await predictor.predict(ask)).facts.path
  now += 3_600_000
  assert.equal(await path(), { bytesPerSecond: 100_000, rttMs: 50 }, 'an hour')
  for (const changed of [{ rttMs: 41 }, { rttMs: 9 }, { congestion: 'cubic' }]) {
    link = { rttMs: 20, congestion: 'bbr', ...changed }
    assert.equal(await path(), { bytesPerSecond: 12_500_000, rttMs: link.rttMs }, JSON.stringify(changed))
  }
  link = { rttMs: 24, congestion: 'bbr' }
  assert.is((await path()).bytesPerSecond, 100_000, 'a small difference')
  now += 1
  const late = await predictor.predict(ask)
  assert.equal([late.pathFrom, late.pathAgeMs, late.facts.path.bytesPerSecond], ['an assumption', undefined, 12_500_000])
})

test.run()
