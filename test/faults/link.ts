// Faults of the link: it breaks and comes back, in time or not. In time the migration goes on from what the target has;
// otherwise the VM stays where it is.

import { sleep } from '../../ops/deadline.ts'
import type { MigrationRecord } from '../../wire/admin.ts'
import { assert } from '../support/suite.ts'
import { faultCase } from './support/case.ts'
import { type GatewayProcess, gatewayProcess } from './support/gateway-process.ts'
import { oracles } from './support/oracles.ts'
import { FAST, openScene, type Scene } from './support/scene.ts'

const SLOW = { ...FAST, rate: { bitsPerSecond: 16e6 } }
/** The guest rewrites less than the link carries. */
const SPOILED = { links: { b: { up: SLOW, down: SLOW } }, guest: { dirtyBytesPerSecond: 256 * 1024 } }
const ENDED_MS = 90_000
/** Longer than a QUIC connection lives in silence (transport/rpc.ts: 15 s). */
const DEAD_MS = 20_000

function assertMoved({ state, outcome, error }: MigrationRecord): void {
  assert.equal({ state, outcome }, { state: 'DONE', outcome: 'completed' }, JSON.stringify(error))
}

/** A migration that is under way over a link which takes its time. */
async function flowing(scene: Scene): Promise<void> {
  await scene.begin()
  await scene.lab.until(scene.migrationId, ({ progress }) => (progress?.wireBytes ?? 0) > 1024 * 1024)
}

faultCase(5, 'kill -9 of the gateway while pages flow, and it is back in time: the migration goes on', async () => {
  let gateway: GatewayProcess | undefined
  const keeper = async (place: Parameters<typeof gatewayProcess>[0]) => {
    gateway = await gatewayProcess(place)
    return gateway
  }
  await using scene = await openScene({ ...SPOILED, lab: { keeper } })
  await flowing(scene)
  await gateway!.kill()
  await sleep(1_000)
  await gateway!.start()
  const record = await scene.ended(ENDED_MS)
  assertMoved(record)
  assert.ok((record.report?.reconnects ?? 0) >= 1, JSON.stringify(record.report))
  await oracles(scene, 'C')
})

faultCase(6, 'the link is 5 s on and 2 s off, again and again: the migration completes', async () => {
  await using scene = await openScene(SPOILED)
  await flowing(scene)
  const over = new AbortController()
  const blinking = (async () => {
    while (!over.signal.aborted) {
      scene.links.b!.cut(true)
      await sleep(2_000)
      scene.links.b!.cut(false)
      await sleep(5_000, over.signal).catch(() => {})
    }
  })()
  const record = await scene.ended(ENDED_MS)
  over.abort()
  await blinking
  assertMoved(record)
  await oracles(scene, 'C')
})

faultCase(6, 'the link is cut until its connections are dead, and comes back in time: the transfer does not begin anew', async () => {
  await using scene = await openScene(SPOILED)
  await flowing(scene)
  scene.links.b!.cut(true)
  await sleep(DEAD_MS)
  scene.links.b!.cut(false)
  const record = await scene.ended(ENDED_MS)
  assertMoved(record)
  assert.ok((record.report?.reconnects ?? 0) >= 1, JSON.stringify(record.report))
  await oracles(scene, 'C')
})

faultCase(7, 'the link is cut for longer than the migration waits: the VM stays at its source', async () => {
  const site = { config: { limits: { memoryReserve: '64MiB', reconnectSeconds: 3, switchoverSeconds: 2 } } }
  await using scene = await openScene({ ...SPOILED, a: { site }, b: { site } })
  await flowing(scene)
  scene.links.b!.cut(true)
  const { state, outcome, error } = await scene.ended(ENDED_MS)
  assert.equal([state, outcome, error?.code], ['ABORTED', 'failed', 'CONNECTION_LOST'])
  scene.links.b!.cut(false)
  await oracles(scene, 'A')
})

faultCase(18, "the target's NAT gives it another port while pages flow: the migration completes", async () => {
  await using scene = await openScene(SPOILED)
  await flowing(scene)
  scene.links.b!.rebind()
  assertMoved(await scene.ended(ENDED_MS))
  await oracles(scene, 'C')
})

faultCase(
  34,
  "the target's agent dies when GRANTED is durable, its QEMU alive: the next agent goes on, and the VM runs there",
  async () => {
    await using scene = await openScene()
    await scene.b.arm('target:GRANTED', 'after', 'die')
    await scene.begin()
    await scene.b.died()
    await oracles(scene, 'doubt')
    await scene.b.start()
    assertMoved(await scene.ended(ENDED_MS))
    await oracles(scene, 'C')
  },
)

faultCase(34, "the target's agent dies before GRANTED, its QEMU alive and loaded: the next agent takes the grant", async () => {
  await using scene = await openScene()
  await scene.b.arm('target:GRANTED', 'before', 'die')
  await scene.begin()
  await scene.b.died()
  await scene.b.start()
  assertMoved(await scene.ended(ENDED_MS))
  await oracles(scene, 'C')
})

faultCase(
  36,
  "the target's agent dies in GRANTED and its QEMU with it: the next agent refuses, and the source takes the VM back",
  async () => {
    await using scene = await openScene()
    await scene.b.arm('target:GRANTED', 'after', 'die')
    await scene.begin()
    await scene.b.died()
    await scene.b.signalQemu('SIGKILL')
    await scene.b.start()
    const { outcome } = await scene.ended(ENDED_MS)
    assert.is(outcome, 'failed')
    await oracles(scene, 'R')
  },
)
