// A lab whose gateway and sites are all processes of their own, as they are in life: for what one process would hide
// (memory, CPU).
// Enters: names of sites. Leaves: running processes and their pids. Always holds: all of them, and every QEMU of
// theirs, are dead when it is disposed.
import { createSocket } from 'node:dgram'
import { readdir, readFile, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { join } from 'node:path'
import { createRoot, type Root } from '../../crypto/certificate.ts'
import { encodeKeys } from '../../crypto/identity.ts'
import { killLeftover } from '../../edge-node/vm/runtime-folder.ts'
import { eventually } from '../../ops/deadline.ts'
import { armor } from '../../ops/files.ts'
import { type HttpTarget, requestJson } from '../../ops/http-client.ts'
import { toYaml } from '../../ops/yaml.ts'
import { createQuicEngine } from '../../transport/quic.ts'
import type { MigrationRecord, MigrationRequest } from '../../wire/admin.ts'
import { silentLog } from '../../wire/log.ts'
import { identityOf } from '../gateway/fixture.ts'
import { abilitiesText, answersOf, secretOfRoot } from './lab.ts'
import { createSite, type LabSite, type SiteOptions, spawnGodwit } from './lab-site.ts'
import { listFileOf } from './revocations.ts'
import { checkSecrets, commandLines, type Text } from './secrets.ts'
import { tempFolder } from './temp-folder.ts'

const HOST = '127.0.0.1'
const READY_MS = 60_000
const SAMPLE_MS = 50
const TOKEN = 'processes-0123456789abcdef'

export type ProcessLab = AsyncDisposable & {
  dir: string
  root: Root
  /** The gateway's admin API. */
  target: HttpTarget
  gatewayPid: number
  site(name: string): LabSite
  sites(): LabSite[]
  migrate(request: MigrationRequest, ms: number): Promise<MigrationRecord>
}

/** Gateway and sites over QUIC on loopback. */
export async function openProcessLab(names: string[], options: Omit<SiteOptions, 'isProcess'> = {}): Promise<ProcessLab> {
  const folder = await tempFolder()
  const dir = folder.path
  const root = createRoot()
  const texts: Text[] = []
  const undo: (() => Promise<unknown>)[] = [async () => await folder[Symbol.asyncDispose]()]
  const dispose = async () => {
    const [remove, ...steps] = undo.splice(0)
    for (const step of steps.reverse()) await step()
    try {
      if (steps.length > 0) await checkSecrets(dir, { secrets: [secretOfRoot(root)], texts })
    } finally {
      await remove?.()
    }
  }
  try {
    const ports = { quic: await freePort(), admin: await freePort() }
    const gateway = await startGatewayProcess(dir, root, ports)
    undo.push(() => gateway.stop())
    const target = { url: `http://${HOST}:${ports.admin}`, token: TOKEN }
    const isReady = () => requestJson<unknown>({ ...target, path: '/healthz', timeoutMs: 1_000 }).catch(() => undefined)
    await eventually(isReady, { ms: READY_MS, what: 'the gateway' })
    const all = new Map<string, LabSite>()
    const around = { root, abilities: await abilitiesText(), engine: createQuicEngine(), port: 'quic' as const, gatewayPort: ports.quic }
    for (const name of names) {
      const site = await createSite({ ...around, name, dir: join(dir, name), log: silentLog }, { ...options, isProcess: true })
      undo.push(() => killAll(site.dir))
      undo.push(() => site.stop())
      all.set(name, site)
      await site.start()
    }
    undo.push(async () => texts.push(...(await answersOf(target, [...all.values()])), ...(await commandLines(dir))))
    return {
      ...{ dir, root, target, gatewayPid: gateway.child.pid!, site: name => all.get(name)!, sites: () => [...all.values()] },
      async migrate(request, ms) {
        const begun = await requestJson<{ migrationId: string }>({ ...target, method: 'POST', path: '/v1/migrations', body: request })
        const look = async () => {
          const record = await requestJson<MigrationRecord>({ ...target, path: `/v1/migrations/${begun.migrationId}` })
          return record.outcome === null ? undefined : record
        }
        return await eventually(look, { ms, everyMs: 50, what: `the migration of ${request.vm}` })
      },
      [Symbol.asyncDispose]: dispose,
    }
  } catch (error) {
    await dispose()
    throw error
  }
}

async function startGatewayProcess(dir: string, root: ReturnType<typeof createRoot>, ports: { quic: number; admin: number }) {
  const path = (name: string) => join(dir, name)
  const { keys, certificate } = identityOf(root, 'gateway', 'gateway')
  await writeFile(path('gateway.keys'), encodeKeys(keys), { mode: 0o600 })
  await writeFile(path('gateway.cert'), armor('CERTIFICATE', certificate))
  await writeFile(path('root.pub'), armor('ROOT PUBLIC KEY', root.signPublic))
  await writeFile(path('admin.token'), TOKEN, { mode: 0o600 })
  await writeFile(path('revocations'), listFileOf(root))
  const config = {
    id: 'gateway',
    stateDir: path('gateway-state'),
    listen: { host: HOST, ports: { quic: ports.quic, tls: 'off', webtransport: 'off' } },
    admin: { host: HOST, port: ports.admin, tokenFile: path('admin.token') },
    identity: { keys: path('gateway.keys'), certificate: path('gateway.cert'), root: path('root.pub') },
    revocations: path('revocations'),
    log: { level: 'info', format: 'text' },
  }
  await writeFile(path('gateway.yaml'), toYaml(config))
  return spawnGodwit(['gateway', '--config', path('gateway.yaml')], path('gateway.log'))
}

async function killAll(siteDir: string): Promise<void> {
  const vms = join(siteDir, 'state', 'vms')
  for (const name of await readdir(vms).catch(() => [])) await killLeftover(join(vms, name))
}

/** A port that is free now for both UDP and TCP. */
async function freePort(): Promise<number> {
  for (;;) {
    const tcp = createServer()
    const port = await new Promise<number>(resolve => tcp.listen(0, HOST, () => resolve((tcp.address() as { port: number }).port)))
    const udp = createSocket('udp4')
    const isFree = await new Promise<boolean>(resolve => {
      udp.once('error', () => resolve(false))
      udp.bind(port, HOST, () => resolve(true))
    })
    await Promise.all([new Promise(resolve => tcp.close(resolve)), new Promise<void>(resolve => udp.close(() => resolve()))])
    if (isFree) return port
  }
}

/** Resident memory of a process now, bytes (proc_pid_status(5)). */
export async function residentBytes(pid: number): Promise<number> {
  const match = /^VmRSS:\s+([0-9]+) kB$/m.exec(await readFile(`/proc/${pid}/status`, 'utf8'))
  return match ? Number(match[1]) * 1024 : 0
}

type Growth = { beforeBytes: number; peakBytes: number; grownBytes: number }

/** Samples resident memory of processes while `work` runs. */
export async function sampleMemory<K extends string>(pids: Record<K, number>, work: Promise<unknown>): Promise<Record<K, Growth>> {
  const names = Object.keys(pids) as K[]
  const measure = () => Promise.all(names.map(name => residentBytes(pids[name])))
  const before = await measure()
  const peak = [...before]
  const ended = work.then(
    () => true,
    () => true,
  )
  const tick = () => new Promise<false>(resolve => setTimeout(() => resolve(false), SAMPLE_MS))
  do for (const [i, bytes] of (await measure()).entries()) peak[i] = Math.max(peak[i]!, bytes)
  while (!(await Promise.race([ended, tick()])))
  const growth = names.map(
    (name, i) => [name, { beforeBytes: before[i]!, peakBytes: peak[i]!, grownBytes: peak[i]! - before[i]! }] as const,
  )
  return Object.fromEntries(growth) as Record<K, Growth>
}
