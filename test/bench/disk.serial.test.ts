// The short form of bench:disk: Godwit moves a small guest with its disk there and back over an emulated link, and
// nothing is lost. QEMU's own way is not in it: its mirror may need minutes beside a guest that writes.
import { spawnSync } from 'node:child_process'
import { DISK_CELLS } from '../../bench/disk/cases.ts'
import { makeGodwitWithDisk } from '../../bench/disk/godwit.ts'
import type { Outcome } from '../../bench/disk/outcome.ts'
import { runOne } from '../../bench/disk/run-one.ts'
import { loadSodium } from '../../crypto/identity.ts'
import { namespacesMissing } from '../../sim-network/namespaces.ts'
import { guestMissing } from '../support/guest.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('bench: disk, short form', { ms: 600_000 })
const noTools = spawnSync('qemu-nbd', ['--version']).status !== 0 && 'qemu-utils is not installed'
const skip = namespacesMissing() ?? guestMissing() ?? noTools
const cell = DISK_CELLS[0]!

test(
  'a VM with its disk moves there and back, and every figure is measured',
  async () => {
    await loadSodium()
    const outcomes: Outcome[] = []
    const run = { cell, base: 'image', mover: 'godwit', repetition: 1, timeoutMs: 240_000, backAfterMinutes: 0, hasOracle: false } as const
    await runOne(makeGodwitWithDisk, run, outcome => void outcomes.push(outcome))
    assert.equal(
      outcomes.map(({ case: which, failure, bad }) => [which, failure, bad]),
      [
        ['image', undefined, 0],
        ['back to image', undefined, 0],
      ],
    )
    for (const { totalMs, downtimeMs, bytesForth, calmP99Us, busyP99Us, cpuSeconds } of outcomes)
      for (const figure of [totalMs, downtimeMs, bytesForth, calmP99Us, busyP99Us, cpuSeconds]) assert.ok((figure ?? 0) > 0)
  },
  { skip },
)

test.run()
