// The users that are measured, by the VM whose latency they measure. Pure. Enters: who was measured, when. Leaves:
// whether there is room for them.
// Always holds: bounded for each VM, so that nobody who floods one VM with users takes the room of another's; a user
// who is measured is never displaced.

/** Users of one VM. */
export const USERS_PER_VM_MAX = 64
/** Users of all VMs. */
const USERS_MAX = 50_000
/** A user who was silent for so long gives way to another, ms. */
const GIVES_WAY_MS = 10_000
/** A user who was silent for so long is forgotten, ms. */
const FORGOTTEN_MS = 600_000

type Users = {
  /** Notes that this user was measured. False when there is no room for one more. */
  seen(vm: string, ueKey: string, nowMs: number): boolean
  has(ueKey: string): boolean
  tidy(isVm: (name: string) => boolean, nowMs: number): void
  readonly count: number
}

export function createUsers(): Users {
  /** By VM: its users, the longest silent first. */
  const byVm = new Map<string, Map<string, number>>()
  /** By user: the VM that it uses now. */
  const vmOf = new Map<string, string>()

  function remove(ueKey: string): void {
    const vm = vmOf.get(ueKey)
    vmOf.delete(ueKey)
    const users = vm === undefined ? undefined : byVm.get(vm)
    users?.delete(ueKey)
    if (users?.size === 0) byVm.delete(vm!)
  }

  function hasRoom(users: Map<string, number> | undefined, nowMs: number): boolean {
    const isFull = (users?.size ?? 0) >= USERS_PER_VM_MAX
    if (!isFull) return vmOf.size < USERS_MAX
    const [longestSilent, seenAtMs] = users!.entries().next().value!
    if (nowMs - seenAtMs < GIVES_WAY_MS) return false
    remove(longestSilent)
    return true
  }

  return {
    seen(vm, ueKey, nowMs) {
      if (vmOf.get(ueKey) !== vm) {
        if (!hasRoom(byVm.get(vm), nowMs)) return false
        remove(ueKey)
      }
      const users = byVm.get(vm) ?? new Map<string, number>()
      byVm.set(vm, users)
      users.delete(ueKey)
      users.set(ueKey, nowMs)
      vmOf.set(ueKey, vm)
      return true
    },
    has: ueKey => vmOf.has(ueKey),
    tidy(isVm, nowMs) {
      for (const [vm, users] of byVm) for (const [ueKey, seenAtMs] of users) if (!isVm(vm) || nowMs - seenAtMs > FORGOTTEN_MS) remove(ueKey)
    },
    get count() {
      return vmOf.size
    },
  }
}
