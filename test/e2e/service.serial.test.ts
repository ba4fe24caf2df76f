// A user reaches a service in a real guest through the gateway's stable address while the guest moves between sites.
import { connect } from 'node:net'
import { createUser, type DemoUser, summarize } from '../../cli/demo/user.ts'
import { findForward } from '../../edge-node/vm/forward.ts'
import { eventually } from '../../ops/deadline.ts'
import type { ServiceView } from '../../wire/admin.ts'
import { type Lab, labMissing, openLab } from '../support/lab.ts'
import { bootGuest } from '../support/lab-guest.ts'
import { assert, suite } from '../support/suite.ts'

const test = suite('e2e: a service of a VM')
const skip = labMissing()

const SERVICE = { vm: 'vm-1', service: 'http', listen: { host: '127.0.0.1', port: 0 } }
const SPEC = { nics: [{ type: 'user' }], services: [{ name: 'http', port: 80 }] }
const PAGES = (128 * 1024 * 1024) / 4096

async function viewOf(lab: Lab): Promise<ServiceView> {
  const { services } = await lab.api<{ services: ServiceView[] }>('GET', '/v1/services')
  return services[0]!
}

/** A user whose requests have begun to be answered. */
async function userOf(lab: Lab): Promise<DemoUser> {
  const { listen } = await viewOf(lab)
  const user = createUser({ ...listen, everyMs: 50, deadlineMs: 60_000, now: () => performance.now() })
  await eventually(() => user.requests.some(({ answeredMs }) => answeredMs !== undefined) || undefined, { ms: 60_000, what: 'an answer' })
  return user
}

const forwards = async (lab: Lab, site: string): Promise<number | undefined> => {
  const { commands } = lab.site(site).node.registry.machine('vm-1')
  return findForward(await commands.humanMonitor('info usernet'), 'net0', 80)
}

test(
  'a user who asks all the time loses nothing while the VM moves there and back',
  async () => {
    await using lab = await openLab({ services: [SERVICE] })
    using guest = await bootGuest(lab, 'a', { spec: SPEC, dirtyBytesPerSecond: 1024 * 1024 })
    const user = await userOf(lab)
    assert.equal(await guest.runsAt(), ['a'])
    for (const to of ['b', 'a']) {
      const fromMs = performance.now()
      const { outcome, report } = await lab.migrate({ vm: 'vm-1', to })
      assert.is(outcome, 'completed', lab.logTail())
      // Pages of a guest with a network card still travel as pages: all of RAM was taken out of QEMU's stream, and
      // nothing was passed through unread.
      assert.equal(report!.notes, [])
      assert.ok(report!.guestBytes / 4096 >= PAGES, `${report!.guestBytes} bytes of guest memory went as pages`)
      const answered = () => user.requests.filter(({ madeMs, answeredMs }) => answeredMs && madeMs > fromMs).length
      const before = answered()
      await eventually(() => (answered() > before + 10 ? true : undefined), { ms: 60_000, what: `answers from ${to}` })
      assert.is((await viewOf(lab)).site, to)
      assert.type(await forwards(lab, to), 'number')
    }
    await user.stop()
    const { made, lost, longestGapMs, retried } = user.summary()
    assert.equal(
      { lost, wrong: user.wrong },
      { lost: 0, wrong: [] },
      `of ${made} requests; longest gap ${longestGapMs} ms, ${retried} made twice`,
    )
    console.log(`  of ${made} requests: ${lost} lost, ${retried} made twice, longest gap ${Math.round(longestGapMs)} ms`)
    await guest.assertSound()
  },
  { skip, ms: 120_000 },
)

test(
  'a site does not answer for a guest that is stopped, and answers again when it runs',
  async () => {
    await using lab = await openLab({ services: [SERVICE] })
    using _guest = await bootGuest(lab, 'a', { spec: SPEC, dirtyBytesPerSecond: 0 })
    const user = await userOf(lab)
    const { commands } = lab.site('a').node.registry.machine('vm-1')
    await commands.stop()
    await eventually(async () => ((await viewOf(lab)).waiting > 0 ? true : undefined), { ms: 30_000, what: 'a connection that waits' })
    await commands.cont()
    await user.stop()
    assert.equal([user.summary().lost, user.wrong], [0, []])
  },
  { skip, ms: 120_000 },
)

test(
  'after a restart of the node its services are reached by the forward that QEMU kept',
  async () => {
    await using lab = await openLab({ services: [SERVICE] })
    using _guest = await bootGuest(lab, 'a', { spec: SPEC, dirtyBytesPerSecond: 0 })
    const user = await userOf(lab)
    const before = await forwards(lab, 'a')
    await lab.site('a').stop()
    await lab.site('a').start()
    const sinceMs = performance.now()
    await eventually(() => user.requests.some(({ madeMs, answeredMs }) => answeredMs && madeMs > sinceMs) || undefined, {
      ms: 60_000,
      what: 'an answer after the restart',
    })
    await user.stop()
    assert.is(await forwards(lab, 'a'), before)
    assert.equal(user.wrong, [])
  },
  { skip, ms: 120_000 },
)

test(
  'a guest service that nobody listens at ends the connection',
  async () => {
    const service = { ...SERVICE, service: 'none' }
    await using lab = await openLab({ services: [service] })
    using _guest = await bootGuest(lab, 'a', { spec: { ...SPEC, services: [{ name: 'none', port: 81 }] }, dirtyBytesPerSecond: 0 })
    const { listen } = await viewOf(lab)
    const socket = connect({ ...listen })
    const ended = new Promise<string>(resolve => {
      socket.once('error', () => resolve('cut')).once('end', () => resolve('ended'))
    })
    socket.resume().write('hello')
    assert.ok(['cut', 'ended'].includes(await ended))
    socket.destroy()
  },
  { skip, ms: 120_000 },
)

test('of requests, the lost ones, the gaps and the percentiles are told', () => {
  const one = (madeMs: number, answeredMs?: number, attempts = 1) => ({ madeMs, answeredMs, attempts })
  const requests = [one(0, 10), one(50, 70, 2), one(100), one(150, 400), one(200)]
  const { p95Ms, ...rest } = summarize(requests, 150)
  assert.equal(rest, { made: 5, answered: 3, lost: 1, retried: 1, longestGapMs: 330, p50Ms: 20, maxMs: 250 })
  assert.is(p95Ms, 250)
})

test.run()
