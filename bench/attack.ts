// npm run bench:attack: the rate of an honest transfer while a gateway is attacked, for each attack, compared with no
// attack. Enters: seconds for each. Leaves: Mbit/s, the share of the quiet rate, the gateway's peak memory. Gateway,
// source, target and attacker are separate processes on loopback: on few cores the attacker's own work counts as well,
// which makes the figures worse than an attack from another machine.

import { type ChildProcess, fork } from 'node:child_process'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createRoot, issueCertificate, newSerial, type Root, type SubjectRole } from '../crypto/certificate.ts'
import { generateSiteKeys, loadSodium } from '../crypto/identity.ts'
import type { LinkIdentity } from '../crypto/link-auth.ts'
import { startGateway } from '../gateway/gateway.ts'
import { nowSeconds } from '../ops/clock.ts'
import { sleep, within } from '../ops/deadline.ts'
import { requestJson } from '../ops/http-client.ts'
import { decimalNumber, readArguments, runScript } from '../ops/script.ts'
import { openStore } from '../ops/store.ts'
import { createQuicEngine } from '../transport/quic.ts'
import { createTlsEngine } from '../transport/tls.ts'
import { silentLog } from '../wire/log.ts'
import type { AttackTask } from './attack/attacker.ts'
import { ATTACKS, type AttackName } from './attack/floods.ts'
import type { RelayAnswer, RelayTask } from './relay-node.ts'

/**
 * Minimum share of the quiet rate of an honest transfer under each of these attacks, with the attacker on the same
 * machine. docs/internals/threat-model.md states it.
 */
const FLOOR = 0.1
const ENGINES = { quic: createQuicEngine, tls: createTlsEngine }
const STREAMS = 4
const TOKEN = 'bench'
const HEAD_START_MS = 500

type Result = {
  engine: 'quic' | 'tls'
  attack: AttackName
  megabitsPerSecond: number
  share: number
  gatewayRssPeakBytes: number
  made: number
}

function issue(root: Root, role: SubjectRole, id: string): LinkIdentity {
  const keys = generateSiteKeys()
  const now = nowSeconds()
  const { signPublic, boxPublic } = keys
  const times = { notBefore: now - 60, notAfter: now + 3600 }
  return { keys, certificate: issueCertificate(root, { role, id, signPublic, boxPublic, ...times, serial: newSerial() }) }
}

function answerOf<T extends { kind: string }>(child: ChildProcess, kind: T['kind'], ms: number): Promise<T> {
  const come = new Promise<T>((resolve, reject) => {
    child.on('message', (message: T) => message.kind === kind && resolve(message))
    child.once('exit', code => reject(new Error(`a process of the benchmark ended with ${code}`)))
  })
  return within(come, { ms, what: `'${kind}' of a bench process` })
}

const start = (file: string, children: ChildProcess[]): ChildProcess => {
  const stdio = ['ignore', 'ignore', 'inherit', 'ipc'] as ('ignore' | 'inherit' | 'ipc')[]
  const child = fork(new URL(file, import.meta.url), { serialization: 'advanced', stdio })
  children.push(child)
  return child
}

async function measure(engine: 'quic' | 'tls', attack: AttackName, seconds: number): Promise<Omit<Result, 'share'>> {
  const folder = await mkdtemp(join(tmpdir(), 'godwit-bench-'))
  const root = createRoot()
  const store = await openStore(folder)
  const gateway = await startGateway({
    ...{ identity: issue(root, 'gateway', 'gw'), rootPublic: root.signPublic, version: 'bench', store, log: silentLog },
    listen: [{ engine: ENGINES[engine](), host: '127.0.0.1', port: 0 }],
    admin: { host: '127.0.0.1', port: 0, token: TOKEN },
  })
  const port = gateway.listeners[0]!.port
  const children: ChildProcess[] = []
  let rssPeak = 0
  const watch = setInterval(() => {
    rssPeak = Math.max(rssPeak, process.memoryUsage.rss())
  }, 50)
  const node = async (site: RelayTask['site']) => {
    const child = start('relay-node.ts', children)
    child.send({
      site,
      engine,
      port,
      identity: issue(root, 'site', site),
      rootPublic: root.signPublic,
      streams: STREAMS,
      dataConnections: 0,
      seconds,
    })
    await answerOf<RelayAnswer>(child, 'online', 30_000)
    return child
  }
  try {
    const [target] = await Promise.all([node('target'), node('source')])
    const attacker = attack === 'none' ? undefined : start('attack/attacker.ts', children)
    const task: AttackTask = { engine, port, attack, identity: issue(root, 'site', 'mallory'), rootPublic: root.signPublic }
    attacker?.send(task)
    if (attacker) await answerOf(attacker, 'begun', 30_000)
    await sleep(HEAD_START_MS)
    const done = answerOf<Extract<RelayAnswer, { kind: 'done' }>>(target, 'done', seconds * 1000 + 60_000)
    const request = { url: gateway.adminUrl, token: TOKEN, method: 'POST', path: '/v1/migrations', timeoutMs: 30_000 }
    await requestJson({ ...request, body: { vm: 'bench', to: 'target', streams: STREAMS } })
    const { bytes, ms } = await done
    const told = attacker && answerOf<{ kind: 'made'; made: number }>(attacker, 'made', 10_000)
    attacker?.send('tell')
    return {
      engine,
      attack,
      megabitsPerSecond: Math.round((bytes * 8) / ms / 1000),
      gatewayRssPeakBytes: rssPeak,
      made: (await told)?.made ?? 0,
    }
  } finally {
    clearInterval(watch)
    for (const child of children) child.kill('SIGKILL')
    await gateway.close()
    await store.close()
    await rm(folder, { recursive: true, force: true })
  }
}

async function main(): Promise<number> {
  const { values } = readArguments({ options: { seconds: { type: 'string', default: '3' }, json: { type: 'boolean', default: false } } })
  const seconds = decimalNumber('--seconds', values.seconds, { min: 0.1, max: 600 })
  await loadSodium()
  let isHeld = true
  let engines = 0
  for (const engine of ['quic', 'tls'] as const) {
    if (!(await ENGINES[engine]().available()).ok) continue
    engines++
    // Twice, before and after, because the machine may be busy during one of them.
    const all = []
    for (const attack of [...ATTACKS, 'none'] as const) all.push(await measure(engine, attack, seconds))
    const quiet = Math.max(...all.filter(({ attack }) => attack === 'none').map(({ megabitsPerSecond }) => megabitsPerSecond))
    for (const measured of all) {
      const { attack } = measured
      const share = measured.megabitsPerSecond / quiet
      isHeld &&= attack === 'none' || share >= FLOOR
      const rss = `gateway at most ${Math.round(measured.gatewayRssPeakBytes / 2 ** 20)} MiB`
      if (values.json) console.log(JSON.stringify({ bench: 'attack', ...measured, share }))
      else
        console.log(
          `${engine.padEnd(5)} ${attack.padEnd(8)} ${String(measured.megabitsPerSecond).padStart(6)} Mbit/s  ${(share * 100).toFixed(0).padStart(4)} %  ${rss}  ${measured.made} made`,
        )
    }
  }
  if (engines === 0) {
    console.error('no transport engine can be loaded: nothing was measured')
    return 1
  }
  console.log(isHeld ? `the floor of ${FLOOR * 100} % holds` : `below the floor of ${FLOOR * 100} %`)
  return isHeld ? 0 : 1
}

await runScript('Usage: npm run bench:attack -- [--seconds N] [--json]', main)
