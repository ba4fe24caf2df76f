// Memory stays bounded: a guest of 2 GiB, 600 MiB of it filled, moves there and back between processes, and what
// gateway, source and target grow by meanwhile stays below the bounds that docs/internals/architecture.md states, far
// below the guest.
import { MIB } from '../../wire/units.ts'
import { labMissing } from '../support/lab.ts'
import { bootGuest } from '../support/lab-guest.ts'
import { openProcessLab, sampleMemory } from '../support/lab-processes.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('e2e/bounds', { ms: 120_000 })
const VM = 'large'
const GUEST = { name: VM, memoryMiB: 2048, fillBytes: 600 * MIB, dirtyBytesPerSecond: 4 * MIB, auditBytesPerSecond: 0, seed: 91 }
const MOVE_MS = 60_000

/** docs/internals/architecture.md, bounds on memory. */
const BOUND_BYTES = { gateway: 96 * MIB, source: 256 * MIB, target: 256 * MIB }

test(
  'while 2 GiB move, gateway, source and target grow by less than their bounds',
  async () => {
    await using lab = await openProcessLab(['a', 'b'])
    using guest = await bootGuest(lab, 'a', GUEST)
    for (const [from, to] of [
      ['a', 'b'],
      ['b', 'a'],
    ] as const) {
      const pids = { gateway: lab.gatewayPid, source: lab.site(from).pid, target: lab.site(to).pid }
      const moving = lab.migrate({ vm: VM, to }, MOVE_MS)
      const growth = await sampleMemory(pids, moving)
      const { outcome, error, report } = await moving
      assert.equal({ outcome, error }, { outcome: 'completed', error: undefined })
      const mib = (bytes: number) => `${Math.round(bytes / MIB)} MiB`
      const shown = Object.entries(growth).map(([name, { beforeBytes, peakBytes }]) => `${name} ${mib(beforeBytes)} -> ${mib(peakBytes)}`)
      console.log(
        `  ${from}->${to}: ${(report!.totalMs / 1000).toFixed(1)} s, paused ${Math.round(report!.downtimeMs!)} ms, guest ${mib(report!.guestBytes)}, ` +
          `wire ${mib(report!.wireBytes)}, rounds ${report!.rounds}; resident: ${shown.join(', ')}`,
      )
      assert.ok(report!.guestBytes >= 2048 * MIB)
      for (const name of ['gateway', 'source', 'target'] as const)
        assert.ok(growth[name].grownBytes < BOUND_BYTES[name], `${name} grew by ${mib(growth[name].grownBytes)}`)
    }
    await guest.assertSound()
  },
  { skip: labMissing() },
)

test.run()
