// Faults of the path between a site and the gateway, on a modelled link: one way dead, lossy, corrupting.
import { eventually } from '../../ops/deadline.ts'
import { burstLoss } from '../../sim-network/loss.ts'
import { assert } from '../support/suite.ts'
import { faultCase } from './support/case.ts'
import { startCorrupter } from './support/corrupter.ts'
import { oracles } from './support/oracles.ts'
import { FAST, openScene, type Scene } from './support/scene.ts'

/** Little is carried over such a link: the guest rewrites little. */
const CALM = { dirtyBytesPerSecond: 256 * 1024 }
const bothLinks = { a: { up: FAST, down: FAST }, b: { up: FAST, down: FAST } }

function lose(scene: Scene, loss: ReturnType<typeof burstLoss> | undefined): void {
  for (const link of Object.values(scene.links)) for (const way of ['up', 'down'] as const) link.change(way, { loss })
}

/** The gateway is started anew, so that all handshakes are made again, and both sites have found it. */
async function meetAnew({ lab }: Scene): Promise<void> {
  await lab.stopGateway()
  await lab.startGateway()
  const areBack = async () => {
    const { sites } = await lab.api<{ sites: { online: boolean }[] }>('GET', '/v1/sites')
    return sites.filter(({ online }) => online).length === 2 || undefined
  }
  await eventually(areBack, { ms: 60_000, everyMs: 100, what: 'both sites online' })
}

faultCase(
  8,
  "the way from the gateway to the target dies, the way back lives, for longer than the link's patience: the VM runs at the source",
  async () => {
    await using scene = await openScene({ links: { b: { up: FAST, down: FAST } } })
    await scene.midway()
    scene.links.b!.change('down', { loss: { ratio: 1 } })
    scene.lab.valve.open()
    const { state } = await scene.ended(90_000)
    assert.is(state, 'ABORTED')
    scene.links.b!.change('down', { loss: undefined })
    await oracles(scene, 'A')
  },
  { ms: 220_000 },
)

faultCase(
  9,
  "30 % of the handshakes' packets are lost, then 2 % in bursts of three: it moves",
  async () => {
    await using scene = await openScene({ links: bothLinks, guest: CALM })
    lose(scene, { ratio: 0.3 })
    await meetAnew(scene)
    lose(scene, burstLoss(0.02, 3))
    await scene.begin()
    await scene.ended(120_000)
    await oracles(scene, 'C')
  },
  { ms: 220_000 },
)

faultCase(
  10,
  "one bit is wrong in 30 % of the handshakes' packets, then in 2 % of all: it moves, and no wrong bit comes through",
  async () => {
    let corrupter: Awaited<ReturnType<typeof startCorrupter>> | undefined
    const site = {
      get gatewayPort() {
        return corrupter!.port
      },
    }
    await using scene = await openScene({
      b: { site },
      guest: CALM,
      beforeSites: async lab => {
        corrupter = await startCorrupter(lab.door.port, 10)
      },
    })
    await using _ = corrupter!
    corrupter!.set(0.3)
    await meetAnew(scene)
    corrupter!.set(0.02)
    await scene.begin()
    await scene.ended(120_000)
    assert.ok(corrupter!.altered > 20, `${corrupter!.altered} datagrams were altered`)
    await oracles(scene, 'C')
  },
  { ms: 220_000 },
)
