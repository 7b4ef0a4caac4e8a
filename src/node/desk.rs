//! The desk: the one task that changes anything, one request after another.
//!
//! A request that was taken is carried to its end; whoever asked may go away. In between the desk looks after the host:
//! every [`WATCH`] it puts right what somebody else changed of ours, and publishes what it cannot put right.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use weave_model::api::{
    AttachRequest, Attachment, Attachments, CniFindings, CniGcRequest, CniRef, ExposeRequest,
    HostAddress, InitRequest, IpamFindings, JoinRequest, LeaveAnswer, LeaveRequest, Membership,
    NetworkInfo, NetworkRequest, Refusal, ServiceInfo, ServiceRequest, TokenAnswer, TokenRequest,
    Trace, TraceRequest,
};
use weave_model::docker::Call;
use weave_model::{ContainerName, IfName, NetworkName, ServiceName};

use super::docker;
use super::works::Works;
use crate::vital::Part;

/// How often the host is looked after.
const WATCH: Duration = Duration::from_secs(5);

/// How long a request in progress may take once the node is asked to stop.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where the answer to a request goes.
pub(super) type Reply<A> = oneshot::Sender<Result<A, Refusal>>;

/// A request that changes something.
pub(super) enum Job {
    Init(InitRequest, Reply<Membership>),
    Token(TokenRequest, Reply<TokenAnswer>),
    Join(JoinRequest, Reply<Membership>),
    Attach(Box<AttachRequest>, Reply<Attachment>),
    Detach(ContainerName, Option<IfName>, Reply<Attachments>),
    CniDel(CniRef, Reply<Attachments>),
    CniCheck(CniRef, Reply<CniFindings>),
    CniGc(CniGcRequest, Reply<Attachments>),
    Expose(ExposeRequest, Reply<HostAddress>),
    Hide(Reply<HostAddress>),
    Docker(Box<Call>, Reply<docker::Answer>),
    Leave(LeaveRequest, Reply<LeaveAnswer>),
    CheckIpam(Reply<IpamFindings>),
    CreateService(Box<ServiceRequest>, Reply<ServiceInfo>),
    RemoveService(ServiceName, Reply<ServiceInfo>),
    /// Does for Services what only the desk may.
    SettleServices,
    Trace(TraceRequest, Reply<Trace>),
    MakeNetwork(NetworkRequest, Reply<NetworkInfo>),
    RemoveNetwork(NetworkName, Reply<NetworkInfo>),
    /// Takes over what others say of networks and floating addresses.
    SettleNetworks,
}

/// The running desk. It ends when the last [`super::Node`] is dropped.
#[derive(Debug)]
pub struct Desk {
    task: JoinHandle<()>,
}

impl Desk {
    /// Starts the task. If it ends by itself, `part` tells.
    pub(super) fn start(works: Works, jobs: mpsc::Receiver<Job>, part: Part) -> Self {
        let served = async move {
            serve(works, jobs).await;
            drop(part);
        };
        Self {
            task: tokio::spawn(served),
        }
    }

    /// Waits until what was taken is done; call it when every [`super::Node`] is dropped.
    pub async fn stop(mut self) {
        if tokio::time::timeout(PATIENCE, &mut self.task)
            .await
            .is_err()
        {
            tracing::warn!("a request was still in progress at the end");
            self.task.abort();
        }
    }
}

async fn serve(mut works: Works, mut jobs: mpsc::Receiver<Job>) {
    let mut watch = interval(WATCH);
    watch.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            job = jobs.recv() => match job {
                Some(job) => do_job(&mut works, job).await,
                None => break,
            },
            _ = watch.tick() => works.look_after().await,
        }
    }
    works.stop();
}

/// Does what is asked. A caller that went away misses only the answer.
async fn do_job(works: &mut Works, job: Job) {
    match job {
        Job::Init(request, reply) => drop(reply.send(works.init(request).await)),
        Job::Token(request, reply) => drop(reply.send(works.create_token(request).await)),
        Job::Join(request, reply) => drop(reply.send(works.join(request).await)),
        Job::Attach(request, reply) => drop(reply.send(works.attach(*request).await)),
        Job::Detach(name, ifname, reply) => {
            drop(reply.send(works.detach(&name, ifname.as_ref()).await))
        }
        Job::CniDel(what, reply) => drop(reply.send(works.cni_del(&what).await)),
        Job::CniCheck(what, reply) => drop(reply.send(works.cni_check(&what).await)),
        Job::CniGc(request, reply) => drop(reply.send(works.cni_gc(&request).await)),
        Job::Expose(request, reply) => drop(reply.send(works.expose(request).await)),
        Job::Hide(reply) => drop(reply.send(works.hide().await)),
        Job::Docker(call, reply) => drop(reply.send(works.docker(*call).await)),
        Job::Leave(request, reply) => drop(reply.send(works.leave(request).await)),
        Job::CheckIpam(reply) => drop(reply.send(works.check_ipam().await)),
        Job::CreateService(request, reply) => {
            drop(reply.send(works.create_service(*request).await));
        }
        Job::RemoveService(name, reply) => drop(reply.send(works.remove_service(&name))),
        Job::SettleServices => works.settle_services().await,
        Job::Trace(request, reply) => drop(reply.send(works.trace(&request).await)),
        Job::MakeNetwork(request, reply) => {
            drop(reply.send(works.declare_network(request).await));
        }
        Job::RemoveNetwork(name, reply) => drop(reply.send(works.remove_network(&name).await)),
        Job::SettleNetworks => {
            works.settle_networks().await;
            works.settle_floating().await;
        }
    }
}
