// edge-node/services.ts in the simulation: users' connections to VMs, which there are none of.
export const createServices = () => ({ onServiceStream: async () => {} })
