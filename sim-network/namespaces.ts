// Network namespaces by name, as `ip netns` manages them. Enters: names, commands. Leaves: their output, or
// SETUP_NEEDED / CONFIG_INVALID / USAGE. Always holds: disposing a namespace deletes it; nothing here changes the
// machine's own network.
import { execFile } from 'node:child_process'
import { accessSync, constants } from 'node:fs'
import { promisify } from 'node:util'
import { GodwitError } from '../wire/errors.ts'

const execute = promisify(execFile)
const NAME = /^[A-Za-z0-9][A-Za-z0-9_.-]{0,31}$/
const COMMAND_MS = 10_000
const TUN = '/dev/net/tun'

/** The reason why links between namespaces are not possible on this host (for `skip` and errors), or undefined. */
export function namespacesMissing(): string | undefined {
  if (process.platform !== 'linux') return `network namespaces need Linux, this is ${process.platform}`
  if (process.getuid?.() !== 0) return 'a link between network namespaces needs root'
  try {
    accessSync(TUN, constants.R_OK | constants.W_OK)
  } catch {
    return `${TUN} cannot be opened: the kernel has no TUN devices, or this container may not use them`
  }
  return undefined
}

/** Throws SETUP_NEEDED with the reason of namespacesMissing. */
export function needNamespaces(): void {
  const missing = namespacesMissing()
  if (missing) throw new GodwitError('SETUP_NEEDED', missing, { hint: 'run it as root on Linux with TUN (modprobe tun)' })
}

/** Path of the kernel's handle of a namespace. USAGE for an invalid name. */
export function namespacePath(name: string): string {
  if (!NAME.test(name)) throw new GodwitError('USAGE', `'${name.slice(0, 40)}' is not the name of a network namespace`)
  return `/run/netns/${name}`
}

/** `ip ARGS`; returns stdout. SETUP_NEEDED without iproute2. */
export async function ip(...args: string[]): Promise<string> {
  try {
    return (await execute('ip', args, { timeout: COMMAND_MS })).stdout
  } catch (error) {
    const { code, stderr } = error as { code?: unknown; stderr?: string }
    if (code === 'ENOENT')
      throw new GodwitError('SETUP_NEEDED', "the program 'ip' is missing", { hint: 'install iproute2 (Debian: apt-get install iproute2)' })
    throw new GodwitError('CONFIG_INVALID', `ip ${args.join(' ')}: ${String(stderr ?? error).trim()}`, { cause: error })
  }
}

/** The command line that runs a command in a namespace. */
export const inNamespace = (name: string, words: readonly string[]): string[] => ['ip', 'netns', 'exec', name, ...words]

/** Runs a command in a namespace; returns stdout. */
export const runInNamespace = async (name: string, ...words: string[]): Promise<string> => await ip('netns', 'exec', name, ...words)

/**
 * A new namespace with its loopback up, deleted on disposal (with every device in it). CONFIG_INVALID if the name
 * exists.
 */
export async function createNamespace(name: string): Promise<AsyncDisposable> {
  namespacePath(name)
  await ip('netns', 'add', name)
  await ip('-n', name, 'link', 'set', 'lo', 'up')
  return { [Symbol.asyncDispose]: async () => void (await ip('netns', 'del', name).catch(() => {})) }
}
