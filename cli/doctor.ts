// What godwit doctor looks at: one function a line, each with its own deadline, none of which changes anything on the host.
// Enters: this host. Leaves: checks: ok, warn (works, but) or fail (this is missing), with what to do.
import { constants } from 'node:fs'
import { access, readFile, stat, statfs } from 'node:fs/promises'
import { availableParallelism, release } from 'node:os'
import { dirname } from 'node:path'
import { within } from '../ops/deadline.ts'
import { formatBytes } from '../ops/units.ts'
import { hasCode } from '../wire/errors.ts'
import type { Io } from './io.ts'
import { defaultPaths } from './paths.ts'

export type CheckState = 'ok' | 'warn' | 'fail'
export type Check = { name: string; state: CheckState; detail: string; advice?: string }

const MIB = 1024 * 1024
const NODE_MAJOR_MIN = 24
const CHECK_MS = 20_000

/** All checks, in the order shown. A check that throws or hangs is a `fail` of its own. */
export async function runChecks(io: Io): Promise<Check[]> {
  const groups: [string, () => Promise<Check[]> | Check[]][] = [
    ['node', nodeVersion],
    ['qemu', checkQemu],
    ['qemu users', () => qemuUsers(io)],
    ['memory', memory],
    ['disk', () => disk(io)],
    ['guest memory', guestMemory],
    ['transport', checkTransports],
    ['tcp congestion control', congestionControl],
    ['udp buffers', udpBuffers],
    ['crypto', crypto],
    ['compression', compression],
    ['clock', clock],
    ['configuration', () => configuration(io)],
  ]
  const checks: Check[] = []
  for (const [name, look] of groups) {
    try {
      checks.push(...(await within(Promise.resolve(look()), { ms: CHECK_MS, what: name })))
    } catch (error) {
      checks.push({ name, state: 'fail', detail: error instanceof Error ? error.message : String(error) })
    }
  }
  return checks
}

const ok = (name: string, detail: string): Check => ({ name, state: 'ok', detail })
const warn = (name: string, detail: string, advice: string): Check => ({ name, state: 'warn', detail, advice })
const fail = (name: string, detail: string, advice: string): Check => ({ name, state: 'fail', detail, advice })

const textOf = (path: string): Promise<string> => readFile(path, 'utf8').then(text => text.trim())

function nodeVersion(): Check[] {
  const major = Number(process.versions.node.split('.')[0])
  if (major >= NODE_MAJOR_MIN) return [ok('node', `${process.versions.node}, ${availableParallelism()} processors`)]
  return [fail('node', `${process.versions.node}`, `use Node ${NODE_MAJOR_MIN} or newer: npm install brings one`)]
}

async function checkQemu(): Promise<Check[]> {
  const { qemuChecks } = await import('./doctor-qemu.ts')
  return await qemuChecks()
}

async function qemuUsers(io: Io): Promise<Check[]> {
  const [{ usersCheck }, { loadNodeConfig }] = await Promise.all([import('./doctor-qemu.ts'), import('./config.ts')])
  // A configuration that is wrong has its own line.
  const config = await loadNodeConfig(io).catch(() => undefined)
  return [usersCheck(config?.qemu?.users)]
}

async function memory(): Promise<Check[]> {
  const info = await textOf('/proc/meminfo')
  const freeBytes = Number(/MemAvailable:\s+(\d+) kB/.exec(info)?.[1] ?? 0) * 1024
  const detail = `${formatBytes(freeBytes)} available`
  if (freeBytes < 512 * MIB) return [warn('memory', detail, 'a VM needs its memory at both sites for the time of a migration')]
  return [ok('memory', detail)]
}

async function disk(io: Io): Promise<Check[]> {
  const { stateDir } = defaultPaths(io)
  const folder = await nearestFolder(stateDir)
  const { bavail, bsize } = await statfs(folder)
  const detail = `${formatBytes(bavail * bsize)} free for ${stateDir}`
  const isWritable = await access(folder, constants.W_OK).then(
    () => true,
    () => false,
  )
  if (!isWritable) return [fail('disk', `${folder} cannot be written`, 'run as the user that owns it, or set stateDir')]
  if (bavail * bsize < 256 * MIB) return [warn('disk', detail, 'logs and the state database need room: free some')]
  return [ok('disk', detail)]
}

async function nearestFolder(path: string): Promise<string> {
  const isThere = await stat(path).then(
    found => found.isDirectory(),
    () => false,
  )
  return isThere || path === '/' ? path : nearestFolder(dirname(path))
}

/** Guest memory is a memfd of QEMU's, which the node opens through /proc. */
async function guestMemory(): Promise<Check[]> {
  const canReadProc = await access(`/proc/${process.pid}/fd`, constants.R_OK).then(
    () => true,
    () => false,
  )
  const [major = 0, minor = 0] = release().split('.').map(Number)
  if (!canReadProc) return [fail('guest memory', '/proc is not there', 'mount /proc: pages are written into QEMU through /proc/PID/fd')]
  if (major < 3 || (major === 3 && minor < 17)) return [fail('guest memory', `Linux ${release()} has no memfd`, 'use Linux 3.17 or newer')]
  return [ok('guest memory', `memfd and /proc/PID/fd, Linux ${release()}`)]
}

async function checkTransports(): Promise<Check[]> {
  const { loadEngines } = await import('./wiring.ts')
  const checks: Check[] = []
  for (const engine of await loadEngines()) {
    const found = await within(engine.available(), { ms: 10_000, what: engine.name })
    const name = `transport ${engine.name}`
    if (found.ok) checks.push(ok(name, found.detail ?? 'loads'))
    else
      checks.push(
        warn(name, `does not load: ${found.reason}`, 'transport: auto takes another; npm install brings what is missing where it can'),
      )
  }
  if (!checks.some(({ state }) => state === 'ok'))
    checks.push(fail('transport', 'no engine loads', 'run npm install again and see its output'))
  return checks
}

async function congestionControl(): Promise<Check[]> {
  const name = 'tcp congestion control'
  const inUse = await textOf('/proc/sys/net/ipv4/tcp_congestion_control')
  const available = await textOf('/proc/sys/net/ipv4/tcp_available_congestion_control')
  if (inUse === 'bbr') return [ok(name, 'bbr: the tls engine keeps its rate on lossy long paths')]
  const how = available.includes('bbr')
    ? 'sysctl -w net.ipv4.tcp_congestion_control=bbr'
    : 'modprobe tcp_bbr, then sysctl -w net.ipv4.tcp_congestion_control=bbr'
  return [warn(name, `${inUse}: the tls engine is slow where there is random loss`, how)]
}

/** quinn's listening socket takes the kernel's default, whatever the engine asks for (seen in ss): a gateway needs rmem_default. */
async function udpBuffers(): Promise<Check[]> {
  const [most, usual] = await Promise.all(
    ['rmem_max', 'rmem_default'].map(async name => Number(await textOf(`/proc/sys/net/core/${name}`))),
  )
  const detail = `at most ${formatBytes(most!)}, by default ${formatBytes(usual!)}`
  if (most! >= 2_000_000 && usual! >= 2_000_000) return [ok('udp buffers', detail)]
  const advice =
    'sysctl -w net.core.rmem_max=4194304 net.core.rmem_default=4194304 net.core.wmem_max=4194304 (packaging/godwit-sysctl.conf)'
  return [warn('udp buffers', `${detail}: quic loses packets in bursts when the host is busy`, advice)]
}

async function crypto(): Promise<Check[]> {
  const { loadSodium, native } = await import('../crypto/sodium.ts')
  await loadSodium()
  if (native()) return [ok('crypto', 'libsodium; bulk encryption by sodium-native')]
  return [warn('crypto', 'libsodium as WASM: 280-640 MB/s instead of 1800', 'npm install sodium-native, if this platform has it')]
}

async function compression(): Promise<Check[]> {
  const zlib = await import('node:zlib')
  if ('zstdCompressSync' in zlib) return [ok('compression', `zstd ${process.versions['zstd'] ?? ''} of node:zlib`)]
  return [warn('compression', 'zstd by zstd-codec (WASM): about a third of the speed', `use Node ${NODE_MAJOR_MIN} or newer`)]
}

/** Certificates are short-lived: a clock that is wrong refuses them. */
async function clock(): Promise<Check[]> {
  const now = new Date()
  const built = await stat(new URL('../package.json', import.meta.url))
  if (now.getTime() < built.mtimeMs - 86_400_000)
    return [fail('clock', `${now.toISOString()} is before this software was installed`, 'set the clock')]
  const isSynced = await access('/run/systemd/timesync/synchronized').then(
    () => true,
    () => false,
  )
  return [ok('clock', `${now.toISOString()}${isSynced ? ', synchronised' : ' (keep it synchronised: certificates are short-lived)'}`)]
}

async function configuration(io: Io): Promise<Check[]> {
  const { loadGatewayConfig, loadNodeConfig } = await import('./config.ts')
  const { exists } = await import('../ops/files.ts')
  const { configDir } = defaultPaths(io)
  const checks: Check[] = []
  for (const [kind, load] of [
    ['gateway', loadGatewayConfig],
    ['node', loadNodeConfig],
  ] as const) {
    const path = `${configDir}/${kind}.yaml`
    if (!(await exists(path))) continue
    try {
      await load(io)
      checks.push(ok(`${kind} configuration`, path))
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error)
      checks.push(fail(`${kind} configuration`, message, hasCode(error, 'CONFIG_INVALID') ? 'mend the named field' : 'check the file'))
    }
  }
  if (checks.length === 0)
    checks.push(warn('configuration', `no gateway.yaml or node.yaml in ${configDir}`, 'see packaging/ for samples, README.md for a tour'))
  return checks
}
