// edge-node/vm/runtime-folder.ts in the simulation: which QEMU belongs to a VM's folder.
import { hostOf } from '../host.ts'
import { pass } from '../stage.ts'
import { pause, processNow } from '../time.ts'

const WAIT_MS = 1

/** Kills what is left in the folder, written down or not. */
export async function killLeftover(dir: string): Promise<void> {
  await pass('before kill leftover')
  for (const qemu of hostOf(processNow()).qemus) if (qemu.dir === dir && qemu.alive) qemu.end('agent')
  await pause(processNow(), WAIT_MS)
}
export const qemuLogTail = async (): Promise<string> => ''

export async function readProcessFile(dir: string): Promise<{ identity: { bootId: string } } | undefined> {
  const host = hostOf(processNow())
  await pause(processNow(), 0.05)
  const qemu = host.processFiles.get(dir)
  return qemu && { identity: { bootId: qemu.bootId } }
}
export const boundLogs = async (): Promise<void> => {}
export const removeRuntimeFiles = async (): Promise<void> => {}
export const writeProcessFile = async (): Promise<void> => {}
