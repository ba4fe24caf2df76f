// The guest's own end in mid-migration, and what else it does by itself: it powers off, panics, reboots, falls asleep.
// Each time its VM is at exactly one site, is listed there as what it is, within seconds, and goes on or starts there.

import type { LocalVmFacts } from '../../edge-node/registry/registry.ts'
import { eventually } from '../../ops/deadline.ts'
import { assert, codeOf } from '../support/suite.ts'
import { faultCase } from './support/case.ts'
import { oracles } from './support/oracles.ts'
import { openScene, type Scene, VM } from './support/scene.ts'

/** Generous for a busy machine; without the watch on the guest it was the whole transfer, or for ever. */
const SECONDS = { ms: 20_000, everyMs: 50 }

const listed = async (scene: Scene, site: 'a' | 'b') => (await scene.site(site).api<{ vms: LocalVmFacts[] }>('GET', '/v1/vms')).vms
const stateAt = async (scene: Scene, site: 'a' | 'b') => (await listed(scene, site)).map(({ state }) => state)
const order = (scene: Scene, site: 'a' | 'b', action: string, body = {}) => scene.site(site).api('POST', `/v1/vms/${VM}/${action}`, body)
const comesTo = (scene: Scene, site: 'a' | 'b', state: string) =>
  eventually(async () => ((await stateAt(scene, site))[0] === state ? true : undefined), { ...SECONDS, what: `${state} at ${site}` })

async function startsAnew(scene: Scene, site: 'a' | 'b'): Promise<void> {
  const ready = scene.serial.next('ready', 90_000)
  ready.catch(() => {})
  await order(scene, site, 'start')
  await ready
}

for (const [number, command, code, state] of [
  [57, 'poweroff', 'GUEST_STOPPED', 'stopped'],
  [58, 'panic', 'GUEST_CRASHED', 'failed'],
] as const)
  for (const method of ['live', 'cold'] as const) {
    // A cold one stands still from its first page on: its guest ends before that.
    const when = method === 'live' ? 'in round 1' : 'while the offer is on its way'
    faultCase(
      number,
      `${command} in the guest ${when} (${method}): the migration ends within seconds, the VM is ${state} at its source`,
      async () => {
        await using scene = await openScene()
        if (method === 'live') {
          await scene.midway()
          await scene.type('a', command)
        } else {
          const point = await scene.a.arm('source:OFFERED', 'before', 'hold')
          await scene.begin({ method })
          await point.reached()
          await scene.type('a', command)
          const word = command === 'panic' ? 'guest-panicked' : 'shutdown'
          await eventually(async () => ((await scene.eyes.status('a')) === word ? true : undefined), { ...SECONDS, what: word })
          await point.release()
        }
        const { outcome, error } = await scene.ended(SECONDS.ms)
        assert.equal([outcome, error?.code], ['failed', code])
        await comesTo(scene, 'a', state)
        assert.is((await listed(scene, 'a'))[0]?.failure?.code, state === 'failed' ? code : undefined)
        assert.equal([await scene.eyes.status('a'), await scene.eyes.status('b')], ['gone', 'gone'])
        assert.equal(await stateAt(scene, 'b'), [])
        scene.lab.valve.open()
        await startsAnew(scene, 'a')
        await oracles(scene, 'A', { guest: 'booted' })
      },
    )
  }

faultCase(57, 'poweroff in the guest as soon as it runs at the target: it is stopped there, and starts there', async () => {
  await using scene = await openScene()
  const point = await scene.b.arm('target:RUNNING', 'before', 'hold')
  await scene.begin()
  await point.reached()
  await scene.type('b', 'poweroff')
  await comesTo(scene, 'b', 'stopped')
  await point.release()
  assert.is((await scene.ended()).outcome, 'completed')
  assert.equal([await stateAt(scene, 'a'), await stateAt(scene, 'b')], [[], ['stopped']])
  await startsAnew(scene, 'b')
  await oracles(scene, 'C', { guest: 'booted' })
})

faultCase(
  57,
  "poweroff in the guest, and the source's agent dies with it: the next one finds both, and the VM is stopped at its source",
  async () => {
    await using scene = await openScene()
    await scene.midway()
    await scene.a.kill()
    await scene.eyes.qmp('a')!.execute('system_powerdown')
    await eventually(async () => ((await scene.eyes.status('a')) === 'shutdown' ? true : undefined), { ...SECONDS, what: 'shutdown' })
    scene.lab.valve.open()
    await scene.a.start()
    assert.is((await scene.ended()).outcome, 'failed')
    await comesTo(scene, 'a', 'stopped')
    await startsAnew(scene, 'a')
    await oracles(scene, 'A', { guest: 'booted' })
  },
)

faultCase(59, 'reboot in the guest in round 1: the migration goes on, it boots on, and runs at the target alone', async () => {
  await using scene = await openScene()
  await scene.midway()
  const ready = scene.serial.next('ready', 90_000)
  ready.catch(() => {})
  await scene.type('a', 'reboot')
  scene.lab.valve.open()
  assert.is((await scene.ended(90_000)).outcome, 'completed')
  await ready
  await oracles(scene, 'C', { guest: 'booted' })
})

for (const method of ['live', 'cold'] as const)
  faultCase(
    60,
    `a guest that falls asleep (S3) in round 1, and one that sleeps before (${method}): it sleeps at the target until it is woken`,
    async () => {
      await using scene = await openScene()
      if (method === 'live') {
        await scene.midway()
        await scene.type('a', 'suspend')
        await eventually(async () => ((await scene.eyes.status('a')) === 'suspended' ? true : undefined), { ...SECONDS, what: 'suspended' })
        scene.lab.valve.open()
      } else {
        await scene.type('a', 'suspend')
        await comesTo(scene, 'a', 'suspended')
        await scene.begin({ method })
      }
      assert.is((await scene.ended(90_000)).outcome, 'completed')
      await comesTo(scene, 'b', 'suspended')
      assert.equal([await scene.eyes.status('a'), await scene.eyes.status('b')], ['gone', 'suspended'])
      const awake = scene.serial.next('beat', 20_000)
      awake.catch(() => {})
      if (method === 'live') await order(scene, 'b', 'wake')
      else await order(scene, 'b', 'start')
      await awake
      assert.is(await codeOf(() => order(scene, 'b', 'wake')), 'VM_STATE')
      await oracles(scene, 'C')
    },
  )

faultCase(
  60,
  'a guest that falls asleep in round 1 of a migration that is cancelled: it sleeps on at its source, and shuts down from there',
  async () => {
    await using scene = await openScene()
    const migrationId = await scene.midway()
    await scene.type('a', 'suspend')
    await eventually(async () => ((await scene.eyes.status('a')) === 'suspended' ? true : undefined), { ...SECONDS, what: 'suspended' })
    await scene.lab.api('DELETE', `/v1/migrations/${migrationId}`)
    assert.is((await scene.ended(SECONDS.ms)).outcome, 'cancelled')
    await comesTo(scene, 'a', 'suspended')
    scene.lab.valve.open()
    await order(scene, 'a', 'stop', { timeoutMs: 30_000 })
    assert.equal(await stateAt(scene, 'a'), ['stopped'])
    await startsAnew(scene, 'a')
    await oracles(scene, 'A', { guest: 'booted' })
  },
)

faultCase(
  61,
  'SIGTERM of an agent in mid-migration, at either side, and of a source that waits for an answer: it ends within seconds',
  async () => {
    await using scene = await openScene()
    /** 2 s is what a quiet machine keeps; a wait that has to run out here would take 15 s or more. */
    const ends = async (site: 'a' | 'b') => {
      const began = performance.now()
      scene.site(site).signalAgent('SIGTERM')
      await scene.site(site).died()
      const tookMs = Math.round(performance.now() - began)
      console.log(`SIGTERM at ${site}: ${tookMs} ms`)
      assert.ok(tookMs < 8_000, `${tookMs} ms`)
    }
    for (const site of ['a', 'b'] as const) {
      await scene.midway()
      await ends(site)
      scene.lab.valve.open()
      await scene.site(site).start()
      assert.not.equal((await scene.ended()).outcome, 'completed')
      await oracles(scene, 'A')
    }
    const point = await scene.a.arm('source:RELINQUISHED', 'after', 'hold')
    await scene.begin()
    await point.reached()
    // It hears nothing: the source has no answer.
    scene.b.signalAgent('SIGSTOP')
    await point.release()
    await eventually(async () => ((await listed(scene, 'a'))[0]?.state === 'migrating' ? true : undefined), { ...SECONDS, what: 'asking' })
    await ends('a')
    scene.b.signalAgent('SIGCONT')
    await scene.a.start()
    await scene.ended()
    await oracles(scene, 'C')
  },
)
