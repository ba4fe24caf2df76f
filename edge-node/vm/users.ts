// Which user runs which VM's QEMU. Enters: names of VMs, a range of user ids. Leaves: a user for each, the same until
// the VM is gone.
// Always holds: written down (fsync) before QEMU starts, so it is the same after a restart; no two VMs have the same
// user; none that /etc/passwd knows, or that has a process here that is not this VM's, is given out.
import { readdirSync, readFileSync, statSync } from 'node:fs'
import type { Store } from '../../ops/store.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { UserRange } from './confine.ts'

const TABLE = 'vm-users'

export type VmUsers = {
  /** The VM's user; one of the range is taken for it the first time. LIMIT_EXCEEDED when all are in use. */
  take(name: string): Promise<number>
  /** The VM is gone: its user may be another's. */
  release(name: string): Promise<void>
}

type UsersOptions = {
  store: Store
  range: UserRange
  /** Users that have processes here, and users that are people's or services'. For tests. */
  busy?: () => Set<number>
}

export async function openUsers({ store, range, busy = busyUsers }: UsersOptions): Promise<VmUsers> {
  const taken = new Map<string, number>()
  for await (const [name, uid] of store.entries<number>(TABLE)) taken.set(name, uid)
  const isInRange = (uid: number) => uid >= range.from && uid < range.from + range.count
  /** One at a time: two VMs must not see the same one free. */
  let turn: Promise<unknown> = Promise.resolve()

  const choose = async (name: string): Promise<number> => {
    const known = taken.get(name)
    if (known !== undefined && isInRange(known)) return known
    const used = new Set([...taken.values(), ...busy()])
    for (let uid = range.from; isInRange(uid); uid++) {
      if (used.has(uid)) continue
      await store.put(TABLE, name, uid, { sync: true })
      taken.set(name, uid)
      return uid
    }
    throw new GodwitError('LIMIT_EXCEEDED', `all ${range.count} users from id ${range.from} are in use`, {
      hint: 'increase the range qemu.users',
    })
  }
  const inTurn = <T>(work: () => Promise<T>): Promise<T> => {
    const done = turn.then(work)
    turn = done.catch(() => {})
    return done
  }
  return {
    take: name => inTurn(() => choose(name)),
    release: name =>
      inTurn(async () => {
        if (!taken.has(name)) return
        await store.delete(TABLE, name, { sync: true })
        taken.delete(name)
      }),
  }
}

/** Users that are not free: they have a process, or a name. */
function busyUsers(): Set<number> {
  const users = new Set<number>()
  for (const line of readFileSync('/etc/passwd', 'utf8').split('\n')) {
    const uid = Number(line.split(':')[2] ?? Number.NaN)
    if (Number.isInteger(uid)) users.add(uid)
  }
  for (const pid of readdirSync('/proc')) {
    if (!/^[0-9]+$/.test(pid)) continue
    try {
      users.add(statSync(`/proc/${pid}`).uid)
    } catch {
      // It has ended meanwhile.
    }
  }
  return users
}
