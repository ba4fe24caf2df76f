// What the scenes of the demo share: commands as an operator types them, a stage that is always cleared, a guest that is watched and judged.
import { mkdir, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { type GuestOptions, guestAppend } from '../../guest/image.ts'
import { requestJson } from '../../ops/http-client.ts'
import { toYaml } from '../../ops/yaml.ts'
import { GodwitError } from '../../wire/errors.ts'
import type { Io } from '../io.ts'
import { run } from '../run.ts'
import { type Observer, observe } from './observer.ts'
import { buildStage, type Stage, type StageOptions } from './stage.ts'

export const VM = 'demo'
export const MIB = 1024 * 1024
const READY_MS = 90_000
const AUDIT_MS = 60_000

export type DemoContext = {
  dir: string
  io: Io
  say(text: string): void
  /** Nothing but notes: the answer is JSON. */
  isQuiet: boolean
  seed: number
  /** Aborted by Ctrl-C. */
  signal: AbortSignal
}

export type SceneResult = {
  /** What --json prints. */
  facts: Record<string, unknown>
  /** The end of the story, for people. */
  lines: string[]
  /** What must not be; empty: all is well. */
  problems: string[]
}

/** Runs one godwit command here, shown as an operator would type it. */
export async function command({ io, say }: DemoContext, words: string[]): Promise<void> {
  say(`$ godwit ${words.join(' ')}`)
  const quiet: Io = { ...io, out: () => {} }
  const code = await run(words, quiet)
  if (code !== 0) throw new GodwitError('INTERNAL', `godwit ${words[0]} ended with ${code}`)
}

/** Builds a stage, has it used, and clears it away: a VM outlives its node by design; here it must not outlive the demo. */
export async function withStage<T>(
  context: DemoContext,
  options: Omit<StageOptions, 'dir' | 'godwit'>,
  use: (stage: Stage, observer: Observer) => Promise<T>,
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

export type DemoGuest = GuestOptions & { memoryMiB: number; spec?: Record<string, unknown> }

/** Boots the guest at a site; resolves when its program has filled its memory. */
export async function boot(
  context: DemoContext,
  stage: Stage,
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
  const { fillBytes = 0, dirtyBytesPerSecond = 0, beatMs = 10 } = options
  const beats = `and beat every ${beatMs} ms on the serial port`
  context.say(
    `booting Linux; its programs fill ${fillBytes / MIB} MiB with mixed content, rewrite ${dirtyBytesPerSecond / MIB} MiB/s of it, ${beats} ...`,
  )
  const { pages } = await ready
  context.say(`ready: ${pages} pages filled`)
}

export type Audit = { pages: number; bad: number; versions: number }
export type Beats = { seen: number; missing: number; duplicates: number; badLines: string[]; restarts: number }

/** The guest compares every page with what it must hold; and what was seen of it from outside. */
export async function examine({ say }: DemoContext, observer: Observer): Promise<{ audit: Audit; beats: Beats }> {
  say('\nthe guest checks every page against its own checksum and version ...')
  const answer = observer.next('audit-full', AUDIT_MS)
  observer.type('audit')
  const { pages, bad, versions } = await answer
  const { beats, missing, duplicates, bad: badLines, restarts } = observer.summary()
  return { audit: { pages, bad, versions }, beats: { seen: beats, missing, duplicates, badLines, restarts } }
}

/** What must be so of every guest that was moved. */
export function judgeGuest({ audit, beats }: { audit: Audit; beats: Beats }): string[] {
  return problemsOf([
    [audit.pages > 0 && audit.bad === 0, `the guest's own audit found ${audit.bad} bad pages of ${audit.pages}`],
    [audit.versions > 0, 'the guest rewrote nothing: the proof would prove nothing'],
    [beats.badLines.length === 0, `the guest complained: ${beats.badLines[0]}`],
    [beats.missing === 0, `${beats.missing} beats were lost`],
    [beats.duplicates === 0, `${beats.duplicates} beats came twice: two copies ran`],
    [beats.restarts === 0, 'the guest was restarted'],
  ])
}

export const guestLines = ({ audit, beats }: { audit: Audit; beats: Beats }): string[] => [
  `beats: ${beats.seen} seen, ${beats.missing} lost, ${beats.duplicates} twice`,
  `audit by the guest: ${audit.pages} pages checked, ${audit.bad} bad, ${audit.versions} rewrites so far`,
]

/** The texts of what is not so. */
export const problemsOf = (rules: [isSo: boolean, text: string][]): string[] => rules.flatMap(([isSo, text]) => (isSo ? [] : [text]))
