// The checks of godwit doctor: one function for each line, each with its own deadline; none changes the host. Enters:
// this host. Leaves: checks: ok, warn (works, but could work better) or fail (missing), with advice.

import { constants } from 'node:fs'
import { access, readFile, stat, statfs } from 'node:fs/promises'
import { availableParallelism, release } from 'node:os'
import { dirname } from 'node:path'
import { nowSeconds } from '../../ops/clock.ts'
import { within } from '../../ops/deadline.ts'
import { formatBytes } from '../../ops/units.ts'
import { hasCode } from '../../wire/errors.ts'
import { MIB } from '../../wire/units.ts'
import type { Io } from '../io.ts'
import { defaultPaths } from '../paths.ts'
import type { Check } from './check.ts'

const NODE_MAJOR_MIN = 24
const CHECK_MS = 20_000

/** All checks, in the order shown. A check that throws or hangs is a `fail` of its own. */
export async function runChecks(io: Io): Promise<Check[]> {
  const groups: [string, () => Promise<Check[]> | Check[]][] = [
    ['node', nodeVersion],
    ['qemu', checkQemu],
    ['packages', packages],
    ['qemu users', () => qemuUsers(io)],
    ['release', () => releaseRules(io)],
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
  return [fail('node', `${process.versions.node}`, `use Node ${NODE_MAJOR_MIN} or newer: node scripts/setup.js --npm-only installs one`)]
}

async function checkQemu(): Promise<Check[]> {
  const { qemuChecks } = await import('./qemu.ts')
  return await qemuChecks()
}

async function packages(): Promise<Check[]> {
  const { packageChecks } = await import('./packages.ts')
  return await packageChecks()
}

async function qemuUsers(io: Io): Promise<Check[]> {
  const [{ cageChecks, usersCheck }, { loadNodeConfig }] = await Promise.all([import('./qemu.ts'), import('../config.ts')])
  // A wrong configuration is reported by its own check.
  const config = await loadNodeConfig(io).catch(() => undefined)
  const users = usersCheck(config?.qemu?.users)
  return users.state === 'ok' ? [users, ...(await cageChecks())] : [users]
}

/** Without release rules, a hostile gateway and one hostile site can together obtain the memory of every VM. */
async function releaseRules(io: Io): Promise<Check[]> {
  const { loadNodeConfig } = await import('../config.ts')
  const config = await loadNodeConfig(io).catch(() => undefined)
  if (!config) return []
  const keys = Object.keys(config.commandKeys).length
  if (config.release || keys > 0) return [ok('release', `${config.release?.length ?? 0} rules, ${keys} command keys`)]
  const advice = 'list the target sites under release: in node.yaml, or the senders of commands under commandKeys:'
  return [warn('release', 'the gateway alone may migrate any VM to any site of the root', advice)]
}

async function memory(): Promise<Check[]> {
  const info = await textOf('/proc/meminfo')
  const freeBytes = Number(/MemAvailable:\s+(\d+) kB/.exec(info)?.[1] ?? 0) * 1024
  const detail = `${formatBytes(freeBytes)} available`
  if (freeBytes < 512 * MIB) return [warn('memory', detail, 'during a migration both sites need the memory of the VM')]
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
  if (!isWritable) return [fail('disk', `${folder} is not writable`, 'run as the owner of the folder, or set stateDir')]
  if (bavail * bsize < 256 * MIB) return [warn('disk', detail, 'free disk space: logs and the state database need it')]
  return [ok('disk', detail)]
}

async function nearestFolder(path: string): Promise<string> {
  const isThere = await stat(path).then(
    found => found.isDirectory(),
    () => false,
  )
  return isThere || path === '/' ? path : nearestFolder(dirname(path))
}

/** Guest memory is a memfd of QEMU, which the node opens through /proc. */
async function guestMemory(): Promise<Check[]> {
  const canReadProc = await access(`/proc/${process.pid}/fd`, constants.R_OK).then(
    () => true,
    () => false,
  )
  const [major = 0, minor = 0] = release().split('.').map(Number)
  if (!canReadProc)
    return [fail('guest memory', '/proc is not mounted', 'mount /proc: the node writes pages into QEMU through /proc/PID/fd')]
  if (major < 3 || (major === 3 && minor < 17)) return [fail('guest memory', `Linux ${release()} has no memfd`, 'use Linux 3.17 or newer')]
  return [ok('guest memory', `memfd and /proc/PID/fd, Linux ${release()}`)]
}

async function checkTransports(): Promise<Check[]> {
  const { loadEngines } = await import('../wiring.ts')
  const checks: Check[] = []
  for (const engine of await loadEngines()) {
    const found = await within(engine.available(), { ms: 10_000, what: engine.name })
    const name = `transport ${engine.name}`
    if (found.ok) checks.push(ok(name, found.detail ?? 'loads'))
    else
      checks.push(
        warn(
          name,
          `cannot be loaded: ${found.reason}`,
          'use transport: auto, which chooses another engine; node scripts/setup.js --npm-only installs missing packages',
        ),
      )
  }
  if (!checks.some(({ state }) => state === 'ok'))
    checks.push(fail('transport', 'no engine can be loaded', 'run node scripts/setup.js --npm-only --verbose and read its output'))
  return checks
}

async function congestionControl(): Promise<Check[]> {
  const name = 'tcp congestion control'
  const inUse = await textOf('/proc/sys/net/ipv4/tcp_congestion_control')
  const available = await textOf('/proc/sys/net/ipv4/tcp_available_congestion_control')
  if (inUse === 'bbr') return [ok(name, 'bbr: the tls engine keeps its rate on long paths with loss')]
  const how = available.includes('bbr')
    ? 'sysctl -w net.ipv4.tcp_congestion_control=bbr'
    : 'modprobe tcp_bbr, then sysctl -w net.ipv4.tcp_congestion_control=bbr'
  return [warn(name, `${inUse}: the tls engine is slow on paths with random loss`, how)]
}

/**
 * quinn's listening socket uses the kernel's default, whatever the engine requests (seen in ss): a gateway needs
 * rmem_default.
 */
async function udpBuffers(): Promise<Check[]> {
  const [most, usual] = await Promise.all(
    ['rmem_max', 'rmem_default'].map(async name => Number(await textOf(`/proc/sys/net/core/${name}`))),
  )
  const detail = `maximum ${formatBytes(most!)}, default ${formatBytes(usual!)}`
  if (most! >= 2_000_000 && usual! >= 2_000_000) return [ok('udp buffers', detail)]
  const advice =
    'sysctl -w net.core.rmem_max=4194304 net.core.rmem_default=4194304 net.core.wmem_max=4194304 (packaging/godwit-sysctl.conf)'
  return [warn('udp buffers', `${detail}: quic loses packets in bursts when the host is busy`, advice)]
}

async function crypto(): Promise<Check[]> {
  const { loadSodium, native } = await import('../../crypto/sodium.ts')
  await loadSodium()
  if (native()) return [ok('crypto', 'libsodium; bulk encryption by sodium-native')]
  return [
    warn(
      'crypto',
      'libsodium as WASM: 280-640 MB/s instead of 1800',
      'run node scripts/setup.js --npm-only: it installs sodium-native if the platform supports it',
    ),
  ]
}

async function compression(): Promise<Check[]> {
  const zlib = await import('node:zlib')
  if ('zstdCompressSync' in zlib) return [ok('compression', `zstd ${process.versions['zstd'] ?? ''} of node:zlib`)]
  return [warn('compression', 'zstd of zstd-codec (WASM): about a third of the speed', `use Node ${NODE_MAJOR_MIN} or newer`)]
}

/** Certificates are short-lived: with a wrong clock they are rejected. */
async function clock(): Promise<Check[]> {
  const now = new Date()
  const built = await stat(new URL('../../package.json', import.meta.url))
  if (now.getTime() < built.mtimeMs - 86_400_000)
    return [fail('clock', `${now.toISOString()} is earlier than the installation of this software`, 'set the clock')]
  const isSynced = await access('/run/systemd/timesync/synchronized').then(
    () => true,
    () => false,
  )
  return [
    ok(
      'clock',
      `${now.toISOString()}${isSynced ? ', synchronised' : ' (not known to be synchronised: certificates are short-lived, so use NTP)'}`,
    ),
  ]
}

async function configuration(io: Io): Promise<Check[]> {
  const { loadGatewayConfig, loadNodeConfig } = await import('../config.ts')
  const { exists } = await import('../../ops/files.ts')
  const { configDir } = defaultPaths(io)
  const checks: Check[] = []
  for (const [kind, load] of [
    ['gateway', loadGatewayConfig],
    ['node', loadNodeConfig],
  ] as const) {
    const path = `${configDir}/${kind}.yaml`
    if (!(await exists(path))) continue
    try {
      const { identity, revocations, stateDir } = await load(io)
      checks.push(ok(`${kind} configuration`, path))
      const { trustChecks } = await import('./trust.ts')
      checks.push(...(await trustChecks({ kind, ...identity, stateDir, revocations }, nowSeconds())))
    } catch (error) {
      const message = error instanceof Error ? error.message : String(error)
      checks.push(
        fail(
          `${kind} configuration`,
          message,
          hasCode(error, 'CONFIG_INVALID') ? 'correct the field that the message names' : 'check the file',
        ),
      )
    }
  }
  if (checks.length === 0)
    checks.push(
      warn(
        'configuration',
        `no gateway.yaml or node.yaml in ${configDir}`,
        'docs/operate/install.md has the steps, packaging/ has samples',
      ),
    )
  return checks
}
