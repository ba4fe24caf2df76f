// Faults around the commit: after RELINQUISHED is durable there is one way, forward, until the target itself refuses.
import { faultCase } from './support/case.ts'
import { oracles } from './support/oracles.ts'
import { openScene } from './support/scene.ts'

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
