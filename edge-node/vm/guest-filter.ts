// Keeps QEMUs from the host's network that need none of it: a guest that breaks out of its QEMU reaches no address by
// it. Enters: users of QEMUs, each with yes or no. Leaves: elements of an nftables set. Always holds: the answer for a
// user is in force before its QEMU starts; sockets of the file system (QMP) and taps, which QEMU has open, are not
// touched; only users of the node's own range are ever named, so nodes on one host share the table.
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { type Log, silentLog } from '../../wire/log.ts'
import type { VmSpec } from './spec.ts'

const TABLE = 'inet godwit_guests'
const NFT_MS = 10_000
const KEEP_MS = 30_000

/** The rules, in nft's own language. Applying them again changes nothing. */
const RULES = `add table ${TABLE}
add set ${TABLE} silent { type uid; }
add chain ${TABLE} output { type filter hook output priority filter; }
flush chain ${TABLE} output
add rule ${TABLE} output meta skuid @silent counter reject
`

export type GuestFilter = {
  /** Ends the looking after the rules; they stay. */
  close(): void
  /**
   * Whether this user may use no network from now on. A failure is logged: the VM starts all the same, as on a host
   * without nftables.
   */
  set(uid: number, options: { isSilent: boolean }): Promise<void>
  /** Its QEMU has ended: the user may be another node's soon, and is not put back any more. */
  forget(uid: number): void
}

/** Gives nft a script; rejects with its words. */
export type Nft = (script: string) => Promise<void>

type GuestFilterOptions = { nft?: Nft; log?: Log /** How often the rules are put back, ms. */; keepMs?: number }

/** Whether this VM's QEMU needs nothing of the host's network. */
export const isSilent = ({ nics }: Pick<VmSpec, 'nics'>): boolean => !nics.some(({ type }) => type === 'user')

/** The filter, or why there is none here. */
export async function openGuestFilter({
  nft = runNft,
  log = silentLog,
  keepMs = KEEP_MS,
}: GuestFilterOptions = {}): Promise<GuestFilter | string> {
  try {
    await nft(RULES)
  } catch (error) {
    return `nftables cannot be used on this host: ${reasonOf(error)}`
  }
  const silent = new Set<number>()
  let turn: Promise<unknown> = Promise.resolve()
  let isFailing = false
  /** All of it each time: a host that loads its firewall anew flushes everybody's rules. */
  const apply = (more = ''): Promise<void> => {
    const elements = silent.size > 0 ? `add element ${TABLE} silent { ${[...silent].join(', ')} }\n` : ''
    const mine = turn.then(() => nft(`${RULES}${elements}${more}`))
    turn = mine.catch(() => {})
    return mine
  }
  const keep = async (): Promise<void> => {
    try {
      if (silent.size > 0) await apply()
      isFailing = false
    } catch (error) {
      if (!isFailing) log.warn('network filter of QEMUs could not be restored', { users: silent.size, why: reasonOf(error) })
      isFailing = true
    }
  }
  const timer = setInterval(() => void keep(), keepMs).unref()
  return {
    close: () => clearInterval(timer),
    forget: uid => void silent.delete(uid),
    async set(uid, { isSilent }) {
      if (isSilent) silent.add(uid)
      else silent.delete(uid)
      // Adding what is there is no error, deleting what is not there is one: so it is added first.
      const element = `element ${TABLE} silent { ${uid} }`
      const opened = isSilent ? '' : `add ${element}\ndelete ${element}\n`
      await apply(opened).catch(error => log.warn('QEMU can use the host network', { uid, why: reasonOf(error) }))
    },
  }
}

async function runNft(script: string): Promise<void> {
  const run = promisify(execFile)('nft', ['-f', '-'], { timeout: NFT_MS })
  run.child.stdin?.on('error', () => {}) // nft is gone already: its exit says why
  run.child.stdin?.end(script)
  await run
}

function reasonOf(error: unknown): string {
  if ((error as NodeJS.ErrnoException).code === 'ENOENT') return 'nft is not installed (apt-get install nftables)'
  const text = String((error as { stderr?: string }).stderr || (error instanceof Error ? error.message : error))
  return text.split('\n')[0]!.slice(0, 200)
}
