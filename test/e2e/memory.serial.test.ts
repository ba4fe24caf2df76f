// Memory is right: real VMs move between real QEMUs while their guests write hard, and when both are paused, loaded and
// not yet handed over, all guest RAM of source and target is dumped and compared byte for byte. Afterwards the guest's
// own audit, and its beats as seen from outside, say the same.

import { createEngines } from '../../transport/select.ts'
import type { EngineName } from '../../transport/types.ts'
import type { MigrationRequest } from '../../wire/admin.ts'
import type { Report } from '../../wire/control.ts'
import { MIB } from '../../wire/units.ts'
import { type Lab, labMissing, openLab } from '../support/lab.ts'
import { bootGuest, type Comparison, compareMemory, heldMemories, type LabGuest } from '../support/lab-guest.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('e2e/memory', { ms: 240_000 })
const missing = labMissing()
const HARD = { dirtyBytesPerSecond: 32 * MIB, hotBytes: 12 * MIB }
/** So short a pause that QEMU has to go through several rounds of what the guest rewrites. */
const downtimeMs = 200

type Move = { report: Report; compared: Comparison; silenceMs: number }

/** One migration with the comparison in its middle. */
async function moved(lab: Lab, vm: LabGuest, to: string, more: Partial<MigrationRequest> = {}): Promise<Move> {
  const [from] = await vm.runsAt()
  const source = lab.site(from!)
  let compared: Comparison | undefined
  lab.site(to).onLoaded = async target => {
    compared = await compareMemory(source.node.registry.machine(vm.name), target)
  }
  const startMs = performance.now()
  const { outcome, error, report } = await lab.migrate({ vm: vm.name, to, downtimeMs, ...more })
  assert.equal({ outcome, error }, { outcome: 'completed', error: undefined }, lab.logTail())
  await vm.observer.next('beat', 5_000)
  const silence = vm.observer.silenceBetween(startMs, performance.now())
  assert.equal(await vm.runsAt(), [to], 'it runs at the target and nowhere else')
  const move = { report: report!, compared: compared!, silenceMs: silence?.ms ?? 0 }
  show(move)
  assert.equal(move.compared.different, [], 'pages that are not the same at source and target')
  assert.is(move.compared.pages, vm.memoryBytes / 4096)
  return move
}

function show({ report, compared, silenceMs }: Move): void {
  const { source, target, method, transport, streams, totalMs, downtimeMs: pauseMs, guestBytes, wireBytes, rounds } = report
  const mib = (bytes: number) => `${Math.round(bytes / MIB)} MiB`
  console.log(
    `  ${source}->${target} ${method} over ${transport}, ${streams} page streams: ${compared.pages} pages compared; ${Math.round(totalMs)} ms, of which ` +
      `paused ${Math.round(pauseMs ?? 0)} ms (silence ${Math.round(silenceMs)} ms) with the dump; guest ${mib(guestBytes)}, wire ${mib(wireBytes)}, ${rounds} rounds`,
  )
}

async function engineMissing(name: EngineName): Promise<string | undefined> {
  if (missing || name === 'memory') return missing
  const found = await createEngines()
    .find(engine => engine.name === name)
    ?.available()
  return found?.ok ? undefined : `the ${name} engine: ${found?.reason}`
}

const RUNS: { engine: EngineName; seed: number }[] = [
  { engine: 'memory', seed: 101 },
  { engine: 'quic', seed: 202 },
  { engine: 'tls', seed: 303 },
  { engine: 'webtransport', seed: 404 },
]
for (const { engine, seed } of RUNS) {
  test(
    `A->B->A->B over ${engine} with seed ${seed} and a guest that writes hard: all RAM is the same, no beat is lost or doubled, no page is bad`,
    async () => {
      await using lab = await openLab({ engine })
      using vm = await bootGuest(lab, 'a', { ...HARD, seed })
      const moves: Move[] = []
      for (const to of ['b', 'a', 'b']) moves.push(await moved(lab, vm, to))
      assert.ok(
        moves.every(({ report }) => report.transport === engine),
        'it went over the engine that was asked for',
      )
      assert.ok(
        moves.some(({ report }) => report.guestBytes > vm.memoryBytes + 4 * MIB),
        'pages were rewritten while they travelled',
      )
      await vm.assertSound()
      assert.is(heldMemories(), 0, 'the agents let go of guest memory')
    },
    { skip: await engineMissing(engine) },
  )
}

test(
  'one page stream, sixteen page streams, a path that stalls, and a cold migration carry the same memory',
  async () => {
    await using lab = await openLab()
    using vm = await bootGuest(lab, 'a', { ...HARD, seed: 505 })
    assert.is((await moved(lab, vm, 'b', { streams: 1 })).report.streams, 1)
    assert.is((await moved(lab, vm, 'a', { streams: 16 })).report.streams, 16)
    // The path stands still in the first round, and the guest rewrites what has been sent.
    lab.valve.hold(index => index >= 2, { afterBytes: 24 * MIB })
    const stalled = moved(lab, vm, 'b')
    await lab.valve.reached()
    await vm.observer.next('audit', 20_000)
    lab.valve.open()
    assert.ok((await stalled).report.guestBytes > vm.memoryBytes + 4 * MIB)
    const cold = await moved(lab, vm, 'a', { method: 'cold' })
    assert.is(cold.report.method, 'cold')
    assert.is(cold.report.guestBytes, vm.memoryBytes, 'cold: each page travels once')
    await vm.assertSound()
    assert.is(heldMemories(), 0)
  },
  { skip: missing },
)

test(
  'without compression every page that is not zero or a duplicate travels raw, and memory is right',
  async () => {
    await using lab = await openLab()
    using vm = await bootGuest(lab, 'a', { ...HARD, seed: 606, spec: { compression: 'off', vcpus: 2 } })
    const { report } = await moved(lab, vm, 'b')
    assert.is(report.pagesCompressed, 0)
    assert.ok(report.wireBytes > report.bytesRaw && report.pagesRaw > 0)
    await moved(lab, vm, 'a')
    await vm.assertSound()
    assert.is(heldMemories(), 0)
  },
  { skip: missing },
)

test.run()
