// Faults before the commit: whatever dies, fills up or lies then, the VM runs at its source and nothing of it stays at the target.
import type { MigrationRecord } from '../../wire/admin.ts'
import { assert } from '../support/suite.ts'
import { faultCase } from './support/case.ts'
import { oracles } from './support/oracles.ts'
import { openScene } from './support/scene.ts'

/** Over, with the VM where it was. */
function assertAborted({ state, outcome, error }: MigrationRecord, code?: string | RegExp): void {
  assert.equal({ state, outcome }, { state: 'ABORTED', outcome: 'failed' }, JSON.stringify(error))
  if (code !== undefined) assert.match(error?.code ?? '', code)
}

faultCase(1, "kill -9 of the source's agent while pages flow: QEMU outlives it, the next agent cancels and keeps the VM", async () => {
  await using scene = await openScene()
  await scene.midway()
  await scene.a.kill()
  scene.lab.valve.open()
  await scene.a.start()
  assertAborted(await scene.ended())
  await oracles(scene, 'A')
})

faultCase(2, "kill -9 of the source's QEMU while pages flow: as a crash of the host, and the target never runs what it has", async () => {
  await using scene = await openScene()
  await scene.midway()
  await scene.a.signalQemu('SIGKILL')
  scene.lab.valve.open()
  assertAborted(await scene.ended(), 'QEMU_EXITED')
  await oracles(scene, 'A', { guest: 'gone' })
})

faultCase(3, "kill -9 of the target's agent before LOADED: the VM runs at the source, the next agent clears up", async () => {
  await using scene = await openScene()
  await scene.midway()
  await scene.b.kill()
  scene.lab.valve.open()
  await scene.b.start()
  assertAborted(await scene.ended())
  await oracles(scene, 'A')
})

faultCase(4, "kill -9 of the target's QEMU while pages arrive: the VM runs at the source", async () => {
  await using scene = await openScene()
  await scene.midway()
  await scene.b.signalQemu('SIGKILL')
  scene.lab.valve.open()
  assertAborted(await scene.ended(), 'QEMU_EXITED')
  await oracles(scene, 'A')
})
