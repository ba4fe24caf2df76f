// Faults around the commit: after RELINQUISHED is durable there is one way, forward, until the target itself refuses.
import { cp, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { eventually, sleep } from '../../ops/deadline.ts'
import { assert, codeOf } from '../support/suite.ts'
import { faultCase } from './support/case.ts'
import { type GatewayProcess, gatewayProcess } from './support/gateway-process.ts'
import { oracles } from './support/oracles.ts'
import { FAST, openScene, type Scene, VM } from './support/scene.ts'

const storeOf = ({ a }: Scene) => join(a.dir, 'state', 'store')
const start = (scene: Scene, site: 'a' | 'b') => scene.site(site).api('POST', `/v1/vms/${VM}/start`, {})
const stateAt = async (scene: Scene, site: 'a' | 'b') =>
  (await scene.site(site).api<{ vms: { state: string }[] }>('GET', '/v1/vms')).vms.map(({ state }) => state)

/** The source has relinquished and stands still: the target stands loaded, and has not heard of it. */
async function relinquished(scene: Scene) {
  const point = await scene.a.arm('source:RELINQUISHED', 'after', 'hold')
  await scene.begin()
  await point.reached()
  return point
}

faultCase(
  24,
  "SIGSTOP of the source's agent in QUIESCED for longer than every link's patience (20 s for 60): the target never starts by itself",
  async () => {
    await using scene = await openScene()
    const point = await scene.a.arm('source:QUIESCED', 'after', 'hold')
    await scene.begin()
    await point.reached()
    scene.a.signalAgent('SIGSTOP')
    const released = point.release()
    await sleep(20_000)
    assert.not(scene.eyes.ranAt('b'), 'it waits for a word that has not come')
    scene.a.signalAgent('SIGCONT')
    await released
    // What it does then follows from whether the link is taken for lost or for back; either way it is one copy.
    const { outcome } = await scene.ended()
    await oracles(scene, outcome === 'completed' ? 'C' : 'A')
  },
)

faultCase(
  28,
  "the source's agent dies with everything loaded, just before RELINQUISHED is written: the next one takes the VM back",
  async () => {
    await using scene = await openScene()
    await scene.a.arm('source:RELINQUISHED', 'before', 'die')
    await scene.begin()
    await scene.a.died()
    assert.not(scene.eyes.ranAt('b'))
    await scene.a.start()
    await scene.ended()
    await oracles(scene, 'A')
  },
)

faultCase(
  29,
  'the source loses power and with it a RELINQUISHED that had not reached the disk: no GRANT was sent, the VM boots cold at the source',
  async () => {
    await using scene = await openScene()
    const before = await scene.a.arm('source:RELINQUISHED', 'before', 'hold')
    await scene.begin()
    await before.reached()
    await cp(storeOf(scene), `${storeOf(scene)}.synced`, { recursive: true })
    const after = await scene.a.arm('source:RELINQUISHED', 'after', 'hold')
    await before.release()
    await after.reached()
    await scene.a.powerLoss()
    await rm(storeOf(scene), { recursive: true })
    await cp(`${storeOf(scene)}.synced`, storeOf(scene), { recursive: true })
    await scene.a.start()
    await scene.ended()
    assert.equal(await stateAt(scene, 'a'), ['stopped'], 'nothing starts by itself')
    await start(scene, 'a')
    await scene.serial.next('ready', 90_000)
    await oracles(scene, 'A', { guest: 'booted' })
  },
)

faultCase(
  30,
  'the disk refuses RELINQUISHED and all after it: no GRANT, both paused, the agent ends; the next one reads what is there and takes the VM back',
  async () => {
    await using scene = await openScene()
    const point = await scene.a.arm('source:RELINQUISHED', 'before', 'hold')
    await scene.begin()
    await point.reached()
    await scene.a.fillDisk(true)
    void point.release().catch(() => {})
    await scene.a.died()
    assert.not(['running'].includes(await scene.eyes.status('a')), 'it stays paused as long as nobody knows what is on the disk')
    assert.not(scene.eyes.ranAt('b'))
    await scene.a.start()
    await scene.ended()
    await oracles(scene, 'A')
  },
)

faultCase(31, "the source's agent dies when RELINQUISHED is durable and no GRANT has left: both paused, the next one asks on", async () => {
  await using scene = await openScene()
  await scene.a.arm('source:RELINQUISHED', 'after', 'die')
  await scene.begin()
  await scene.a.died()
  await oracles(scene, 'doubt')
  await scene.a.start()
  await scene.ended()
  await oracles(scene, 'C')
})

faultCase(
  32,
  'GRANT is lost with the gateway that carried it, and comes late (4 s for 10 min): both paused, then it runs at the target',
  async () => {
    await using scene = await openScene()
    const point = await relinquished(scene)
    scene.lab.valve.hold(index => index === 0)
    await point.release()
    await scene.lab.valve.reached()
    await sleep(4_000)
    await oracles(scene, 'doubt')
    await scene.lab.stopGateway()
    scene.lab.valve.open()
    await scene.lab.startGateway()
    await scene.ended()
    await oracles(scene, 'C')
  },
)

faultCase(32, 'GRANT comes later than the target waits for it: refused, and the source reclaims the VM with its memory', async () => {
  await using scene = await openScene({ b: { waits: { grantMs: 2_000 } } })
  const point = await relinquished(scene)
  await eventually(async () => ((await scene.eyes.status('b')) === 'gone' ? true : undefined), { ms: 15_000, what: 'the target gives up' })
  await point.release()
  await scene.ended()
  await oracles(scene, 'R')
})

faultCase(
  33,
  'GRANT is doubled by a source that has died after the answer, and replayed by one from an old disk: acknowledged, nothing starts',
  async () => {
    await using scene = await openScene()
    const point = await relinquished(scene)
    await cp(storeOf(scene), `${storeOf(scene)}.old`, { recursive: true })
    await scene.a.arm('source:RETIRED', 'before', 'die')
    await point.release()
    await scene.a.died()
    await scene.a.start()
    await scene.ended()
    await oracles(scene, 'C')
    const pid = await scene.b.qemuPid()
    await scene.a.kill()
    await rm(storeOf(scene), { recursive: true })
    await cp(`${storeOf(scene)}.old`, storeOf(scene), { recursive: true })
    await scene.a.start()
    await oracles(scene, 'C')
    assert.is(await scene.b.qemuPid(), pid, 'the same QEMU')
  },
)

faultCase(
  35,
  "the target's host loses power in LOADED, with the VM handed over: it refuses when it is back, the source reclaims",
  async () => {
    await using scene = await openScene()
    const point = await scene.b.arm('target:GRANTED', 'before', 'hold')
    await scene.begin()
    await point.reached()
    await scene.b.powerLoss()
    await scene.b.start()
    await scene.ended()
    await oracles(scene, 'R')
  },
)

faultCase(36, "the target's QEMU dies in GRANTED: refused, the source reclaims", async () => {
  await using scene = await openScene()
  const point = await scene.b.arm('target:GRANTED', 'after', 'hold')
  await scene.begin()
  await point.reached()
  await scene.b.signalQemu('SIGKILL')
  await point.release()
  await scene.ended()
  await oracles(scene, 'R')
})

faultCase(38, "the target's agent dies when RESUMING is durable, before cont: the next one looks, and lets it run", async () => {
  await using scene = await openScene()
  await scene.b.arm('target:RESUMING', 'after', 'die')
  await scene.begin()
  await scene.b.died()
  assert.equal([await scene.eyes.status('a'), scene.eyes.ranAt('b')], ['postmigrate', false], 'paused at both')
  await scene.b.start()
  await scene.ended()
  await oracles(scene, 'C')
})

faultCase(
  39,
  "the target's host loses power after RESUMING: the source's memory is never resumed, the VM boots cold at the target, by an operator",
  async () => {
    await using scene = await openScene()
    const point = await scene.b.arm('target:RESUMING', 'after', 'hold')
    await scene.begin()
    await point.reached()
    await scene.b.powerLoss()
    await scene.b.start()
    await scene.ended()
    assert.equal(await stateAt(scene, 'b'), ['stopped'], 'nothing starts by itself')
    assert.not(scene.eyes.ranAt('b'))
    await start(scene, 'b')
    await scene.serial.next('ready', 90_000)
    await oracles(scene, 'C', { guest: 'booted' })
  },
)

faultCase(40, 'RUNNING is lost (the way back dies, the gateway with it): asked again and acknowledged again', async () => {
  await using scene = await openScene({ links: { b: { up: FAST, down: FAST } } })
  const point = await scene.b.arm('target:RESUMING', 'after', 'hold')
  await scene.begin()
  await point.reached()
  scene.links.b!.change('up', { loss: { ratio: 1 } })
  await point.release()
  await eventually(async () => ((await scene.eyes.status('b')) === 'running' ? true : undefined), { ms: 10_000, what: 'it runs at b' })
  await scene.lab.stopGateway()
  await scene.lab.startGateway()
  scene.links.b!.change('up', { loss: undefined })
  await scene.ended()
  await oracles(scene, 'C')
})

faultCase(
  41,
  'the source loses power after RELINQUISHED, GRANT not delivered: it starts nothing when it is back, and asks on',
  async () => {
    await using scene = await openScene()
    await relinquished(scene)
    await scene.a.powerLoss()
    assert.not(scene.eyes.ranAt('b'))
    await scene.a.start()
    assert.is(await codeOf(() => start(scene, 'a')).catch(() => 'gone already'), 'MIGRATION_DOUBT')
    await scene.ended()
    await oracles(scene, 'C')
  },
)

faultCase(42, 'kill -9 of the gateway in the commit window: when it is back the VM goes on at the target', async () => {
  let gateway: GatewayProcess | undefined
  const keeper = async (place: Parameters<typeof gatewayProcess>[0]) => {
    gateway = await gatewayProcess(place)
    return gateway
  }
  await using scene = await openScene({ lab: { keeper } })
  const point = await relinquished(scene)
  await gateway!.kill()
  await point.release()
  await sleep(1_000)
  await oracles(scene, 'doubt')
  await gateway!.start()
  await scene.ended()
  await oracles(scene, 'C')
})
