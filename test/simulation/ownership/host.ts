// A host: its disk, its clock, its QEMUs, its sockets, its one agent. Enters: power. Leaves: nothing when it goes.
import type { LoadedIdentity } from '../../../identity/load.ts'
import { Disk } from './disk.ts'
import type { Listening } from './fakes/net.ts'
import type { Qemu } from './qemu.ts'
import type { Process } from './time.ts'

/** The VM that all is about. */
export const VM = 'web'

export type Host = {
  name: string
  clockOffsetMs: number
  disk: Disk
  bootId: string
  boots: number
  /** All that ever ran here, dead ones too, newest last. */
  qemus: Qemu[]
  /** By path: who listens. */
  sockets: Map<string, Listening>
  /** By VM folder: which QEMU is written down there. */
  processFiles: Map<string, Qemu>
  identity: LoadedIdentity | undefined
}

export type HostProcess = Process & { host: Host }

export const createHost = (name: string): Host => ({
  name,
  clockOffsetMs: 0,
  disk: new Disk(),
  bootId: `${name}-boot-1`,
  boots: 1,
  qemus: [],
  sockets: new Map(),
  processFiles: new Map(),
  identity: undefined,
})

export const hostOf = (process: Process): Host => (process as HostProcess).host
