// What a churn may leave: threads, sockets and other descriptors of the processes, QEMUs, folders of VMs, other files,
// OS users. Enters: the lab. Leaves: counts, and what is more than it was.
import { readdir, readlink } from 'node:fs/promises'
import { join } from 'node:path'
import { openStore } from '../../ops/store.ts'
import type { ProcessLab } from '../support/lab-processes.ts'
import type { LabSite } from '../support/lab-site.ts'

type Process = { name: string; pid: number; threads: number; sockets: number; files: number; others: number }
export type Left = { processes: Process[]; qemus: number; vmFolders: number; files: string[] }

async function processOf(name: string, pid: number): Promise<Process> {
  const threads = (await readdir(`/proc/${pid}/task`)).length
  const links = await Promise.all((await readdir(`/proc/${pid}/fd`)).map(fd => readlink(`/proc/${pid}/fd/${fd}`).catch(() => '')))
  const sockets = links.filter(link => link.startsWith('socket:')).length
  const files = links.filter(link => link.startsWith('/')).length
  return { name, pid, threads, sockets, files, others: links.filter(Boolean).length - sockets - files }
}

/** QEMUs that work in a folder of the lab. */
async function qemusBelow(dir: string): Promise<number> {
  const all = await Promise.all(
    (await readdir('/proc'))
      .filter(entry => /^\d+$/.test(entry))
      .map(async pid => {
        const [exe, cwd] = await Promise.all(['exe', 'cwd'].map(link => readlink(`/proc/${pid}/${link}`).catch(() => '')))
        return exe!.includes('qemu') && cwd!.startsWith(`${dir}/`)
      }),
  )
  return all.filter(Boolean).length
}

const vmFoldersOf = (site: LabSite) => readdir(join(site.dir, 'state', 'vms')).catch(() => [] as string[])

/** Of the sites' folders and the system's: all but what belongs to a VM that is there, and the database's own files. */
async function filesOf(site: LabSite): Promise<string[]> {
  const vms = await vmFoldersOf(site)
  const all = await readdir(site.dir, { recursive: true })
  const isOwn = (path: string) =>
    path.startsWith('state/store/') || vms.some(vm => path.split('/').includes(vm) || path.split('/').at(-1)!.startsWith(`${vm}.`))
  return all.filter(path => !isOwn(path)).map(path => `${site.name}/${path}`)
}

export async function measure(lab: ProcessLab): Promise<Left> {
  const sites = lab.sites()
  const pids = [{ name: 'gateway', pid: lab.gatewayPid }, ...sites.map(({ name, pid }) => ({ name: `node ${name}`, pid }))]
  return {
    processes: await Promise.all(pids.map(({ name, pid }) => processOf(name, pid))),
    qemus: await qemusBelow(lab.dir),
    vmFolders: (await Promise.all(sites.map(vmFoldersOf))).flat().length,
    files: (await Promise.all(sites.map(filesOf))).flat().sort(),
  }
}

/**
 * Connections to the gateway come and go by themselves (a second way for pages, probes): this many sockets are no leak,
 * of a thousand migrations.
 */
const SOCKETS_SLACK = 8

/** What there is now that was not there before: a line for each kind. */
export function grown(before: Left, now: Left, vms: number): string[] {
  const lines: string[] = []
  for (const [i, process] of now.processes.entries()) {
    const was = before.processes[i]!
    if (process.pid !== was.pid) lines.push(`${process.name}: another process`)
    for (const [what, slack] of [
      ['threads', 0],
      ['sockets', SOCKETS_SLACK],
      ['files', 0],
      ['others', 0],
    ] as const)
      if (process[what] > was[what] + slack) lines.push(`${process.name}: ${was[what]} -> ${process[what]} ${what}`)
  }
  if (now.qemus !== vms) lines.push(`${now.qemus} QEMUs for ${vms} VMs`)
  if (now.vmFolders !== vms) lines.push(`${now.vmFolders} VM folders for ${vms} VMs`)
  const news = now.files.filter(file => !before.files.includes(file))
  if (news.length > 0) lines.push(`${news.length} files: ${news.slice(0, 5).join(', ')}`)
  return lines
}

/** After the agents have ended: users that are still given out for VMs which are not at that site. */
export async function usersLeft(sites: readonly LabSite[]): Promise<string[]> {
  const lines: string[] = []
  for (const site of sites) {
    const here = await vmFoldersOf(site)
    const store = await openStore(join(site.dir, 'state', 'store'))
    try {
      for await (const [vm, uid] of store.entries<number>('vm-users'))
        if (!here.includes(vm)) lines.push(`${site.name}: user ${uid} of ${vm}`)
    } finally {
      await store.close()
    }
  }
  return lines
}

export const tell = ({ processes, qemus, vmFolders }: Left): string =>
  `${processes.map(({ name, threads, sockets, files, others }) => `${name}: ${threads} threads, ${sockets} sockets, ${files} files, ${others} others`).join('; ')}; ` +
  `${qemus} QEMUs, ${vmFolders} VM folders`
