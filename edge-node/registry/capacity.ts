// The memory of this host, given to VMs. Enters: VMs that start, come, or may come. Leaves: room for them, or
// PREFLIGHT_MEMORY.
// Always holds: free memory is checked and taken in one step, so of two VMs that fit only one at a time one gets it; a
// VM counts in full from the moment that it has room, also while its QEMU starts; a hold is for its VM and for no
// other.

import { GodwitError } from '../../wire/errors.ts'
import { MIB } from '../../wire/units.ts'
import type { RunningVm } from '../vm/machine.ts'
import { MEMORY_OVERHEAD_BYTES } from '../vm/preflight.ts'
import { formatSize } from '../vm/spec.ts'
import { type Hold, Holds } from './holds.ts'

type CapacityOptions = {
  /** What new processes of this host can get now, bytes. */
  availableBytes: () => number
  /** Never given to VMs. */
  reserveBytes: number
  /** What QEMUs that run were promised and have not taken yet: it still counts as available. */
  promisedBytes: () => Promise<number>
}

type Asker = { name: string; memoryBytes: number }

/** Room that a VM has while its QEMU is started. */
type Claim = { release(): void }

export class Capacity {
  readonly #options: CapacityOptions
  readonly #holds = new Holds()
  /** Each its own: a VM may be stopped and started before its earlier claim has gone. */
  readonly #claims = new Set<{ name: string; bytes: number }>()
  #turn: Promise<unknown> = Promise.resolve()

  constructor(options: CapacityOptions) {
    this.#options = options
  }

  /** Bytes that a VM could get now, one of this name if told; negative when more is promised than there is. */
  async freeBytes(name?: string): Promise<number> {
    const { availableBytes, reserveBytes, promisedBytes } = this.#options
    // Promised first: what a QEMU takes in between then counts twice for a moment, never not at all.
    const promised = await promisedBytes()
    const claimed = [...this.#claims].reduce((sum, { bytes }) => sum + bytes, 0)
    return availableBytes() - reserveBytes - promised - claimed - this.#holds.besides(name).bytes
  }

  /**
   * Room for a QEMU that is started now, until the claim is released: then the QEMU itself must count as promised, or
   * be gone. PREFLIGHT_MEMORY.
   */
  async claim(asker: Asker): Promise<Claim> {
    return await this.#inTurn(async () => {
      const bytes = await this.#assertRoom(asker)
      const claim = { name: asker.name, bytes }
      this.#claims.add(claim)
      return { release: () => void this.#claims.delete(claim) }
    })
  }

  /**
   * Keeps room for a VM that may come; gives the bytes. Again for the same VM: anew. PREFLIGHT_MEMORY, LIMIT_EXCEEDED.
   */
  async hold(asker: Asker, hold: Omit<Hold, 'bytes'>): Promise<number> {
    return await this.#inTurn(async () => {
      const bytes = await this.#assertRoom(asker)
      this.#holds.put(asker.name, { ...hold, bytes })
      return bytes
    })
  }

  /** By VM, once it is here; or by the hold's own id. Gives whether there was one. */
  release(which: { vm?: string; id?: string }): boolean {
    return this.#holds.release(which)
  }

  /** VMs that room is held for, but for this one. */
  heldBesides(name: string): number {
    return this.#holds.besides(name).count
  }

  async #assertRoom({ name, memoryBytes }: Asker): Promise<number> {
    const bytes = memoryBytes + MEMORY_OVERHEAD_BYTES
    const free = await this.freeBytes(name)
    if (free >= bytes) return bytes
    const have = `${Math.max(0, Math.floor(free / MIB))}MiB are free at this site`
    throw new GodwitError('PREFLIGHT_MEMORY', `${name} needs ${formatSize(bytes)}, ${have}`)
  }

  async #inTurn<T>(work: () => Promise<T>): Promise<T> {
    const mine = this.#turn.then(work)
    this.#turn = mine.catch(() => {})
    return await mine
  }
}

/**
 * Memory that these QEMUs may still take: QEMU gets a guest's pages when the guest first touches them, so MemAvailable
 * does not show them yet.
 */
export async function promisedBytes(vms: readonly RunningVm[]): Promise<number> {
  const parts = vms.map(async vm => Math.max(0, vm.memoryBytes - (await vm.memoryTakenBytes())))
  return (await Promise.all(parts)).reduce((sum, bytes) => sum + bytes, 0)
}
