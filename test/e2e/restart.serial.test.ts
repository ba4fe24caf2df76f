// Agents are killed with kill -9, as processes of their own over QUIC: while a VM runs, in the middle of a migration at
// either side, and right after the commit. Each time QEMU outlives its agent, the next agent finds it, and what must
// run runs, once.

import { readdir, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { eventually } from '../../ops/deadline.ts'
import type { VmFacts } from '../../wire/control.ts'
import { MIB } from '../../wire/units.ts'
import { labMissing, openLab } from '../support/lab.ts'
import { bootGuest } from '../support/lab-guest.ts'
import { logTailOf } from '../support/lab-site.ts'
import { shared } from '../support/shared.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('e2e/restart', { ms: 90_000 })
const skip = labMissing()
const VM = 'vm-1'

/**
 * Site a is a process of its own, which can be killed; b is in this process, whose hooks hold a migration at a known
 * place.
 */
const scene = shared(async () => {
  const lab = await openLab({ engine: 'quic', sites: [['a', { isProcess: true }], 'b'] })
  try {
    const guest = await bootGuest(lab, 'a', { name: VM, seed: 53, dirtyBytesPerSecond: 16 * MIB })
    const dispose = async () => {
      guest[Symbol.dispose]()
      await lab[Symbol.asyncDispose]()
    }
    return { lab, guest, [Symbol.asyncDispose]: dispose }
  } catch (error) {
    await lab[Symbol.asyncDispose]()
    throw error
  }
})

const factsAt = async (site: string): Promise<VmFacts & { pid?: number }> => (await scene()).lab.site(site).api('GET', `/v1/vms/${VM}`)

async function assertNothingAt(name: string): Promise<void> {
  const { lab } = await scene()
  const site = lab.site(name)
  const isGone = async () => ((await readdir(join(site.dir, 'state', 'vms'))).length === 0 ? true : undefined)
  await eventually(isGone, { ms: 30_000, what: `nothing left at ${name}` })
  assert.equal(await site.api('GET', '/v1/vms'), { vms: [] })
}

async function assertMoves(from: string, to: string): Promise<void> {
  const { lab, guest } = await scene()
  const { outcome, error } = await lab.migrate({ vm: VM, to })
  assert.is(outcome, 'completed', `${JSON.stringify(error)}\n${lab.logTail()}`)
  assert.equal(await guest.runsAt(), [to])
  await guest.assertSound()
  await assertNothingAt(from)
}

/** A migration that stands still with the first pages sent. */
async function midway(to: string): Promise<string> {
  const { lab } = await scene()
  lab.valve.hold(index => index >= 2, { afterBytes: 16 * MIB })
  const migrationId = await lab.begin({ vm: VM, to })
  await lab.valve.reached()
  return migrationId
}

test(
  'killed while its VM runs: the guest goes on without an agent, the next one adopts it, and it can be migrated',
  async () => {
    const { lab, guest } = await scene()
    const before = await factsAt('a')
    await lab.site('a').kill()
    const console = join(lab.site('a').dir, 'state', 'vms', VM, 'serial.log')
    const { size } = await stat(console)
    await eventually(async () => ((await stat(console)).size > size + 500 ? true : undefined), { ms: 30_000, what: 'beats in the log' })
    await lab.site('a').start()
    const after = await factsAt('a')
    assert.equal([after.state, after.pid, after.epoch], ['running', before.pid, before.epoch], 'the same QEMU')
    await guest.watchAnew()
    await guest.assertSound()
    await assertMoves('a', 'b')
  },
  { skip },
)

test(
  "the target's agent is killed in the middle: the VM runs at the source, and the next agent there clears up",
  async () => {
    const { lab, guest } = await scene()
    const migrationId = await midway('a')
    await lab.site('a').kill()
    lab.valve.open()
    await lab.site('a').start()
    const { state, outcome } = await lab.until(migrationId)
    assert.equal({ state, outcome }, { state: 'ABORTED', outcome: 'failed' })
    await assertNothingAt('a')
    assert.equal(await guest.runsAt(), ['b'])
    await guest.assertSound()
    await assertMoves('b', 'a')
  },
  { skip },
)

test(
  "the source's agent is killed in the middle: the guest goes on, the next agent cancels and keeps it",
  async () => {
    const { lab, guest } = await scene()
    const migrationId = await midway('b')
    await lab.site('a').kill()
    lab.valve.open()
    await lab.site('a').start()
    const { state, outcome } = await lab.until(migrationId)
    assert.equal({ state, outcome }, { state: 'ABORTED', outcome: 'failed' })
    assert.is((await factsAt('a')).state, 'running')
    await assertNothingAt('b')
    await guest.watchAnew()
    await guest.assertSound()
  },
  { skip },
)

test(
  "the source's agent is killed right after the commit: the next one asks on, and the VM runs at the target, once",
  async () => {
    const { lab, guest } = await scene()
    const target = lab.site('b')
    target.onLoaded = async () => {
      lab.valve.hold(index => index === 0)
      target.onLoaded = undefined
    }
    const migrationId = await lab.begin({ vm: VM, to: 'b' })
    await lab.until(migrationId, ({ state }) => state === 'COMMIT_SEEN')
    await lab.valve.reached()
    await lab.site('a').kill()
    assert.equal((await target.api<{ vms: VmFacts[] }>('GET', '/v1/vms')).vms[0]?.state, 'incoming', 'nobody has told the target to run it')
    lab.valve.open()
    await lab.site('a').start()
    const { state, outcome } = await lab.until(migrationId)
    assert.equal({ state, outcome }, { state: 'DONE', outcome: 'completed' }, await logTailOf(lab.site('a').dir))
    assert.equal(await guest.runsAt(), ['b'])
    await assertNothingAt('a')
    await guest.assertSound()
    await assertMoves('b', 'a')
  },
  { skip },
)

test('the lab ends', () => scene.dispose(), { skip })

test.run()
