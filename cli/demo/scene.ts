// Common parts of the demo's scenes: commands as an operator types them, a stage that is always removed, a guest that
// is observed and checked.

import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type GuestOptions, guestAppend } from '../../guest/image.ts'
import { requestJson } from '../../ops/http-client.ts'
import { toYaml } from '../../ops/yaml.ts'
import { GodwitError } from '../../wire/errors.ts'
import { MIB } from '../../wire/units.ts'
import type { Io } from '../io.ts'
import { run } from '../run.ts'
import { type Observer, observe } from './observer.ts'
import { buildStage, type DemoStage, type StageOptions } from './stage.ts'

export const VM = 'demo'
const READY_MS = 90_000
const AUDIT_MS = 60_000

export type DemoContext = {
  dir: string
  io: Io
  say(text: string): void
  /** Print notes only: the result is JSON. */
  isQuiet: boolean
  seed: number
  /** Aborted by Ctrl-C. */
  signal: AbortSignal
}

export type SceneResult = {
  /** What --json prints. */
  facts: Record<string, unknown>
  /** The summary for people. */
  lines: string[]
  /** Failed checks; empty: all checks passed. */
  problems: string[]
}

/** Runs one godwit command in this process and prints it as an operator would type it. */
async function command({ io, say }: DemoContext, words: string[]): Promise<void> {
  say(`$ godwit ${words.join(' ')}`)
  const quiet: Io = { ...io, out: () => {} }
  const code = await run(words, quiet)
  if (code !== 0) throw new GodwitError('INTERNAL', `godwit ${words[0]} failed with exit code ${code}`)
}

/** Builds a stage, uses it and removes it. A VM outlives its node by design; here it must not outlive the demo. */
export async function withStage<T>(
  context: DemoContext,
  options: Omit<StageOptions, 'dir' | 'godwit'>,
  use: (stage: DemoStage, observer: Observer) => Promise<T>,
): Promise<T> {
  const stage = await buildStage({ ...options, dir: context.dir, godwit: (...words) => command(context, words) })
  const observer = observe(
    VM,
    stage.sites.map(site => ({ site, socketPath: stage.socketOf(site) })),
  )
  try {
    return await use(stage, observer)
  } finally {
    observer.close()
    for (const site of stage.sites) {
      const node = { socketPath: stage.socketOf(site) }
      await requestJson({ ...node, method: 'POST', path: `/v1/vms/${VM}/stop`, body: { force: true } }).catch(() => {})
    }
    await stage.dispose()
  }
}

type DemoGuest = GuestOptions & { memoryMiB: number; spec?: Record<string, unknown> }

/** Boots the guest at a site; resolves when its program has filled its memory. */
export async function boot(
  context: DemoContext,
  stage: DemoStage,
  observer: Observer,
  site: string,
  { memoryMiB, spec, ...options }: DemoGuest,
): Promise<void> {
  const file = join(stage.dir, 'vm.yaml')
  await mkdir(stage.dir, { recursive: true })
  const append = guestAppend(options)
  await writeFile(file, toYaml({ name: VM, memory: `${memoryMiB}MiB`, kernel: 'vmlinuz', initrd: 'initrd.img', append, ...spec }))
  const ready = observer.next('ready', READY_MS)
  ready.catch(() => {})
  await command(context, ['vm', 'create', file, '--start', '--socket', stage.socketOf(site)])
  const { fillBytes = 0, dirtyBytesPerSecond = 0, beatMs = 10, diskBytes = 0, diskBytesPerSecond = 0 } = options
  const disk = diskBytes > 0 ? `and ${diskBytes / MIB} MiB of its disk, rewrite ${diskBytesPerSecond / 1024} KiB/s of that, ` : ''
  const beats = `and print a beat every ${beatMs} ms on the serial port`
  context.say(
    `booting Linux; its programs fill ${fillBytes / MIB} MiB of memory, rewrite ${dirtyBytesPerSecond / MIB} MiB/s of it, ${disk}${beats} ...`,
  )
  const { pages } = await ready
  context.say(`guest ready: ${pages} pages filled`)
}

type Audit = { pages: number; bad: number; versions: number }
type Beats = { seen: number; missing: number; duplicates: number; badLines: string[]; restarts: number }

/** The guest checks every page; the result includes the beats that were received outside. */
export async function examine({ say }: DemoContext, observer: Observer): Promise<{ audit: Audit; beats: Beats }> {
  say('\nthe guest checks the checksum and the version of every page ...')
  const answer = observer.next('audit-full', AUDIT_MS)
  observer.type('audit')
  const { pages, bad, versions } = await answer
  const { beats, missing, duplicates, bad: badLines, restarts } = observer.summary()
  return { audit: { pages, bad, versions }, beats: { seen: beats, missing, duplicates, badLines, restarts } }
}

/** Checks for every guest that was migrated. */
export function judgeGuest({ audit, beats }: { audit: Audit; beats: Beats }): string[] {
  return problemsOf([
    [audit.pages > 0 && audit.bad === 0, `the guest found ${audit.bad} bad pages of ${audit.pages}`],
    [audit.versions > 0, 'the guest rewrote no page, so the page check proves nothing'],
    [beats.badLines.length === 0, `unexpected output of the guest: ${beats.badLines[0]}`],
    [beats.missing === 0, `${beats.missing} beats were lost`],
    [beats.duplicates === 0, `${beats.duplicates} beats arrived twice: two copies of the VM ran`],
    [beats.restarts === 0, 'the guest was restarted'],
  ])
}

export const guestLines = ({ audit, beats }: { audit: Audit; beats: Beats }): string[] => [
  `beats: ${beats.seen} received, ${beats.missing} lost, ${beats.duplicates} received twice`,
  `page check by the guest: ${audit.pages} pages, ${audit.bad} bad, ${audit.versions} rewrites since the boot`,
]

/** The texts of the rules that do not hold. */
export const problemsOf = (rules: [isSo: boolean, text: string][]): string[] => rules.flatMap(([isSo, text]) => (isSo ? [] : [text]))
