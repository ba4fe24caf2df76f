// What a node has from its host, as one plain type: its identity and trust, its store, its VMs and their memory, its
// API's socket.
// Always holds: startNode reaches outside by this type and by its transport engines alone. Here it is this machine
// (nodeHost); the ownership simulation passes its own. Time is the process's: timers, Date and performance.
import { loadIdentity } from '../identity/load.ts'
import { keepRenewed } from '../identity/renewal.ts'
import { openTrust, type Trust, type TrustOptions } from '../identity/trust.ts'
import { startHttpServer } from '../ops/http.ts'
import { LOCKED_MS, openStore, type Store } from '../ops/store.ts'
import type { GodwitError } from '../wire/errors.ts'
import type { Log } from '../wire/log.ts'
import { type MemoryPath, qemuMemoryPath } from './migration/memory-path.ts'
import { type VmHost, vmHost } from './registry/vm-host.ts'
import type { RunningVm } from './vm/machine.ts'
import { type MemorySample, measureMemory } from './vm/sample.ts'

export type NodeHost = {
  loadIdentity: typeof loadIdentity
  openTrust(options: TrustOptions): Promise<Trust>
  keepRenewed: typeof keepRenewed
  /** STORE_LOCKED when another process has it open. */
  openStore(path: string, options: { log: Log; onBroken: ((error: GodwitError) => void) | undefined }): Promise<Store>
  serveHttp: typeof startHttpServer
  vms: VmHost
  memoryPath: MemoryPath
  /** What the memory of a running VM is like. */
  measureMemory(vm: RunningVm): Promise<MemorySample>
}

export const nodeHost: NodeHost = {
  ...{ loadIdentity, openTrust, keepRenewed, serveHttp: startHttpServer, vms: vmHost, memoryPath: qemuMemoryPath, measureMemory },
  openStore: (path, options) => openStore(path, { ...options, lockedMs: LOCKED_MS }),
}
