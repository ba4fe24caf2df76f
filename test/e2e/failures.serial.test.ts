// A migration fails in the middle, in every way that a test can bring about; and each time the guest goes on where it
// must, once, with its memory intact, the other site has nothing left, and the next migration works. One lab, one Linux
// guest that has travelled through all of it in the end.

import { readdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { eventually } from '../../ops/deadline.ts'
import type { MigrationRecord } from '../../wire/admin.ts'
import type { Method } from '../../wire/control.ts'
import { hasCode } from '../../wire/errors.ts'
import { MIB } from '../../wire/units.ts'
import { echoDisk } from '../edge-node/vm/echo-guest.ts'
import { labMissing, openLab } from '../support/lab.ts'
import { bootGuest, heldMemories } from '../support/lab-guest.ts'
import { shared } from '../support/shared.ts'
import { assert, codeOf, suite } from '../support/suite.ts'

const test = suite('e2e/failures', { ms: 60_000 })
const skip = labMissing()
const VM = 'vm-1'

const scene = shared(async () => {
  const lab = await openLab()
  try {
    const guest = await bootGuest(lab, 'a', { name: VM, seed: 31, dirtyBytesPerSecond: 16 * MIB })
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

type Midway = { migrationId: string; from: string; to: string }

/** A migration that stands still with the first pages sent. */
async function midway(method: Method = 'live'): Promise<Midway> {
  const { lab, guest } = await scene()
  const [from] = await guest.runsAt()
  const to = from === 'a' ? 'b' : 'a'
  lab.valve.hold(index => index >= 2, { afterBytes: 16 * MIB })
  const migrationId = await lab.begin({ vm: VM, to, method })
  await lab.valve.reached()
  return { migrationId, from: from!, to }
}

/** A migration that stands still with the VM handed over by the source, and the target not yet told. */
async function committed(): Promise<Midway> {
  const { lab, guest } = await scene()
  const [from] = await guest.runsAt()
  const to = from === 'a' ? 'b' : 'a'
  const target = lab.site(to)
  target.onLoaded = async () => {
    lab.valve.hold(index => index === 0)
    target.onLoaded = undefined
  }
  const migrationId = await lab.begin({ vm: VM, to })
  await lab.until(migrationId, ({ state }) => state === 'COMMIT_SEEN')
  await lab.valve.reached()
  return { migrationId, from: from!, to }
}

async function online(): Promise<void> {
  const { lab } = await scene()
  for (const site of lab.sites()) await site.node.link.whenOnline({ timeoutMs: 20_000 })
}

/** The site has nothing of a VM, neither in its list nor on its disk. */
async function assertNothingAt(site: string): Promise<void> {
  const { lab } = await scene()
  const isGone = async () => ((await readdir(join(lab.site(site).dir, 'state', 'vms'))).length === 0 ? true : undefined)
  await eventually(isGone, { ms: 30_000, what: `nothing left at ${site}` })
  assert.equal(lab.site(site).node.registry.list(), [])
}

/** It is over, the VM is where it was and sound, nothing is left at the target, and the same migration works now. */
async function assertSurvived(
  { migrationId, from, to }: Midway,
  outcome: MigrationRecord['outcome'],
  code: string | RegExp,
): Promise<void> {
  const { lab, guest } = await scene()
  lab.valve.open()
  const record = await lab.until(migrationId)
  assert.equal({ state: record.state, outcome: record.outcome }, { state: 'ABORTED', outcome }, JSON.stringify(record))
  assert.match(record.error?.code ?? '', code)
  await eventually(async () => ((await guest.runsAt()).includes(from) ? true : undefined), { ms: 30_000, what: `it runs at ${from}` })
  await guest.assertSound()
  await assertNothingAt(to)
  await assertMoves(from, to)
}

async function assertMoves(from: string, to: string): Promise<void> {
  const { lab, guest } = await scene()
  const { outcome, error } = await lab.migrate({ vm: VM, to })
  assert.is(outcome, 'completed', `${JSON.stringify(error)}\n${lab.logTail()}`)
  assert.equal(await guest.runsAt(), [to])
  await guest.assertSound()
  await assertNothingAt(from)
}

/** It was committed: it ends at the target, sound, and nothing is left at the source. */
async function assertHandedOver({ migrationId, from, to }: Midway): Promise<MigrationRecord> {
  const { lab, guest } = await scene()
  const record = await lab.until(migrationId)
  assert.equal(
    { state: record.state, outcome: record.outcome },
    { state: 'DONE', outcome: 'completed' },
    `${JSON.stringify(record)}\n${lab.logTail()}`,
  )
  assert.equal(await guest.runsAt(), [to])
  await guest.assertSound()
  await assertNothingAt(from)
  return record
}

test(
  'cancelled by the API in the middle: the VM runs at the source',
  async () => {
    const { lab } = await scene()
    const midst = await midway()
    await lab.api('DELETE', `/v1/migrations/${midst.migrationId}`)
    await assertSurvived(midst, 'cancelled', 'MIGRATION_CANCELLED')
  },
  { skip },
)

test(
  "the target's QEMU is killed in the middle: the VM runs at the source",
  async () => {
    const { lab } = await scene()
    const midst = await midway()
    process.kill(lab.site(midst.to).node.registry.get(VM).pid!, 'SIGKILL')
    await assertSurvived(midst, 'failed', 'QEMU_EXITED')
  },
  { skip },
)

test(
  "the target's QEMU is killed in the middle of a cold migration: the paused VM runs on at the source",
  async () => {
    const { lab } = await scene()
    const midst = await midway('cold')
    assert.is((await lab.site(midst.from).node.registry.machine(VM).commands.queryStatus()).running, false)
    process.kill(lab.site(midst.to).node.registry.get(VM).pid!, 'SIGKILL')
    await assertSurvived(midst, 'failed', 'QEMU_EXITED')
  },
  { skip },
)

test(
  'the link is cut in the middle: the migration goes on from what the target has, and carries little more than without a cut',
  async () => {
    const { lab } = await scene()
    const uncut = await midway()
    lab.valve.open()
    const whole = (await lab.until(uncut.migrationId)).report!
    const midst = await midway()
    lab.sever()
    lab.valve.open()
    await online()
    const { report } = await assertHandedOver(midst)
    assert.is(report?.reconnects, 1)
    assert.ok(report!.wireBytes < 1.3 * whole.wireBytes, `${report!.wireBytes} bytes, ${whole.wireBytes} without a cut`)
  },
  { skip },
)

test(
  'the gateway is closed in the middle and started again: the guest runs on meanwhile, and the migration goes on',
  async () => {
    const { lab, guest } = await scene()
    const midst = await midway()
    await lab.stopGateway()
    await guest.assertSound()
    lab.valve.open()
    await lab.startGateway()
    await online()
    const { report } = await assertHandedOver(midst)
    assert.is(report?.reconnects, 1)
  },
  { skip },
)

test(
  "the target's agent is closed in the middle: the VM runs at the source",
  async () => {
    const { lab } = await scene()
    const midst = await midway()
    await lab.site(midst.to).stop()
    const { state } = await lab.until(midst.migrationId)
    assert.is(state, 'ABORTED')
    await lab.site(midst.to).start()
    await assertSurvived(midst, 'failed', 'SITE_OFFLINE')
  },
  { skip },
)

test(
  "the source's agent is closed in the middle: the VM runs on, and the next agent finds it",
  async () => {
    const { lab, guest } = await scene()
    const midst = await midway()
    await lab.site(midst.from).stop()
    await lab.site(midst.from).start()
    assert.is(lab.site(midst.from).node.registry.machine(VM).adopted, true)
    await guest.watchAnew()
    await assertSurvived(midst, 'failed', 'SITE_OFFLINE')
  },
  { skip },
)

test(
  'the link is lost when the VM is loaded and not handed over, and is back at once: LOADED is said again, and the VM goes on at the target',
  async () => {
    const { lab, guest } = await scene()
    const [from] = await guest.runsAt()
    const to = from === 'a' ? 'b' : 'a'
    const target = lab.site(to)
    target.onLoaded = async () => {
      lab.sever()
      target.onLoaded = undefined
    }
    const migrationId = await lab.begin({ vm: VM, to })
    await assertHandedOver({ migrationId, from: from!, to })
  },
  { skip },
)

test(
  'a cancel after the commit is too late: the VM goes on at the target',
  async () => {
    const { lab } = await scene()
    const midst = await committed()
    assert.is(await codeOf(() => lab.api('DELETE', `/v1/migrations/${midst.migrationId}`)), 'MIGRATION_LATE')
    lab.valve.open()
    await assertHandedOver(midst)
    assert.is(await codeOf(() => lab.api('DELETE', `/v1/migrations/${midst.migrationId}`)), 'MIGRATION_LATE')
  },
  { skip },
)

test(
  'the link is cut right after the commit: the source asks again, and the VM goes on at the target, once',
  async () => {
    const { lab, guest } = await scene()
    const midst = await committed()
    assert.equal(await guest.runsAt(), [], 'paused at both')
    lab.sever()
    lab.valve.open()
    await assertHandedOver(midst)
  },
  { skip },
)

test(
  'the gateway is closed right after the commit: when it is back the VM goes on at the target, once',
  async () => {
    const { lab } = await scene()
    const midst = await committed()
    await lab.stopGateway()
    lab.valve.open()
    await lab.startGateway()
    await assertHandedOver(midst)
  },
  { skip },
)

test(
  "the source's QEMU is killed in the middle: the VM has failed there, and the target has nothing",
  async () => {
    const { lab, guest } = await scene()
    const [from] = await guest.runsAt()
    const to = from === 'a' ? 'b' : 'a'
    const source = lab.site(from!)
    for (const site of lab.sites()) await writeFile(join(site.imagesDir, 'echo.img'), echoDisk())
    await source.api('POST', '/v1/vms', {
      spec: 'name: doomed\nmemory: 64MiB\ndisks:\n  - {file: echo.img, mode: readonly, format: raw}\n',
    })
    await source.api('POST', '/v1/vms/doomed/start', {})
    lab.valve.hold(index => index >= 1)
    // The gateway hears of a VM, and that it runs, a moment after its node does.
    const begin = () =>
      lab.begin({ vm: 'doomed', to }).catch(error => {
        if (hasCode(error, 'VM_UNKNOWN') || hasCode(error, 'VM_STATE')) return undefined
        throw error
      })
    const migrationId = await eventually(begin, { ms: 30_000, what: 'doomed running, as the gateway sees it' })
    await lab.valve.reached()
    process.kill(source.node.registry.get('doomed').pid!, 'SIGKILL')
    const record = await lab.until(migrationId)
    lab.valve.open()
    assert.equal({ outcome: record.outcome, code: record.error?.code }, { outcome: 'failed', code: 'QEMU_EXITED' })
    assert.is(source.node.registry.get('doomed').state, 'failed')
    await assertNothingAt(to)
    await guest.assertSound()
  },
  { skip },
)

test(
  'the lab ends, and neither agent holds any guest memory',
  async () => {
    assert.is(heldMemories(), 0)
    await scene.dispose()
  },
  { skip },
)

test.run()
