// QEMU's part in a migration, at the target: it waits with `-incoming defer -S`, loads the stream, and runs the guest
// when the VM is ours.
// Always holds: nothing here lets the guest run but letRun, which is for a VM that this site owns.
import type { Socket } from 'node:net'
import { join } from 'node:path'
import { eventually } from '../../ops/deadline.ts'
import { GodwitError } from '../../wire/errors.ts'
import { RUNTIME_FILES } from '../vm/argv.ts'
import { causesIn } from '../vm/exit.ts'
import type { RunningVm } from '../vm/machine.ts'
import { guestEnd, guestState } from '../vm/run-state.ts'
import type { MemoryPath } from './memory-path.ts'

const RUN_MS = 30_000

/** QEMU listens, we connect: the socket takes its migration stream. */
export async function connectIncoming(vm: RunningVm, { connectToQemu }: MemoryPath): Promise<Socket> {
  await vm.commands.setCapabilities({ events: true, 'return-path': true, 'validate-uuid': true })
  await vm.commands.setParameters({ announceRounds: 0 })
  await vm.commands.migrateIncoming(`unix:${RUNTIME_FILES.incoming}`)
  return await connectToQemu(join(vm.runDir, RUNTIME_FILES.incoming))
}

/** Its SHUT reports that it did not load the state. */
export const loadError = async (vm: RunningVm): Promise<GodwitError> =>
  new GodwitError('QEMU_LOAD', `the target's QEMU did not accept the state: ${causesIn(await vm.logTail())}`)

/**
 * `cont` during `inmigrate` would only set a flag; the load must be over (docs/internals/ownership.md: never while
 * inmigrate).
 */
export async function notInMigrate(vm: RunningVm): Promise<void> {
  const { status } = await vm.commands.queryStatus()
  if (status === 'inmigrate') throw new GodwitError('QEMU_LOAD', 'the target QEMU is still in state inmigrate after its SHUT')
}

/**
 * `cont` until the guest runs: one may be lost, and no other site may run it. A QEMU that has ended is the registry's
 * to report.
 */
export async function letRun(vm: RunningVm): Promise<void> {
  if (!vm.alive) return
  const runs = async () => {
    const { status, running } = await vm.commands.queryStatus()
    const guest = guestState(status)
    if (running || guest === 'suspended' || guestEnd(vm.name, guest)) return true
    await vm.commands.cont()
    return undefined
  }
  await eventually(runs, { ms: RUN_MS, what: 'the guest to run', everyMs: 100, code: 'QEMU_TIMEOUT' })
}
